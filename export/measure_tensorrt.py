"""The tables of `docs/tensorrt_plans.md`: plans of the default bundle's models and of others, built without a GPU.

`python -m export.measure_tensorrt` builds each with TensorRT-RTX in a process of its own and writes the page's tables.
"""

import argparse
import json
import multiprocessing
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from export.default_bundle import default_cache_dir, ensure_default_bundle
from export.importers.gguf import read_llama
from export.random_models import QWEN2_500M, T5_SMALL, random_llama, random_t5
from export.tensorrt_build import Profile
from export.tensorrt_inspect import PlanReport, inspect_plan
from export.tensorrt_parts import Part, Weights, adapter_part, encoder_part, llm_part
from export.tensorrt_plans import build_part, default_weights
from export.tensorrt_profiles import Limits, crossing_decoder_profiles, text_encoder_profiles
from models.bundle.io import open_bundle
from models.graph.writer import BFLOAT16, GraphBuilder
from models.llms.t5 import build_t5_decoder, build_t5_encoder
from models.runtimes.cuda.tensorrt_library import load_tensorrt

PAGE = Path(__file__).parent.parent / "docs" / "tensorrt_plans.md"
RESULTS = PAGE.with_suffix(".json")
LIMITS = Limits()
SLOT_POSITIONS = 1024
QWEN_LAYERS = 4
T5_POSITIONS = 256


@dataclass(frozen=True)
class Case:
    """One plan of the page. `layers` each have `attentions_per_layer` attentions."""

    name: str
    gpu: str
    layers: int
    attentions_per_layer: int
    make: Callable[[], Part]


@dataclass(frozen=True)
class Measured:
    """What a case's plan is made of."""

    name: str
    gpu: str
    precision: str
    layers: int
    attentions_per_layer: int
    report: PlanReport
    processor_s: float
    peak_memory_bytes: int


def cases(weights: Weights, bundle: Path) -> Iterator[Case]:
    """Everything on the page, in its order."""
    yield Case("encoder of Whisper base", "sm_80", 6, 1, partial(encoder_part, weights, LIMITS))
    yield Case("our adapter, with its scores", "sm_80", 3, 1, partial(_adapter, bundle))
    llm = "SmolLM2-135M-Instruct"
    for gpu in ("sm_80", "sm_89", "sm_120"):
        yield Case(llm, gpu, 30, 1, partial(_llm, weights.gguf, "bf16", SLOT_POSITIONS))
    yield Case(f"{llm}, slots of 4,096", "sm_80", 30, 1, partial(_llm, weights.gguf, "bf16", 4096))
    yield Case(f"{llm}, greedy on the GPU", "sm_80", 30, 1, partial(_llm, weights.gguf, "bf16", SLOT_POSITIONS, on_device=True))
    for precision, gpu in (("int8", "sm_80"), ("int4", "sm_80"), ("fp8", "sm_89")):
        yield Case(llm, gpu, 30, 1, partial(_llm, weights.gguf, precision, SLOT_POSITIONS))
    yield Case(f"Qwen2-0.5B's shape, {QWEN_LAYERS} of 24 layers, random", "sm_80", QWEN_LAYERS, 1, _qwen)
    yield Case("T5 1.1 small's shape, encoder, random", "sm_80", T5_SMALL.layers, 1, _t5_encoder)
    yield Case("T5 1.1 small's shape, decoder, random", "sm_80", T5_SMALL.layers, 2, _t5_decoder)


def measure(case: Case) -> Measured:
    """Build the case's plan."""
    part = case.make()
    library = load_tensorrt("tensorrt_rtx")
    with tempfile.TemporaryDirectory() as name:
        built = build_part(library, part, case.gpu, Path(name))
    return Measured(
        name=case.name,
        gpu=case.gpu,
        precision=part.precision,
        layers=case.layers,
        attentions_per_layer=case.attentions_per_layer,
        report=inspect_plan(library, built.content),
        processor_s=built.processor_s,
        peak_memory_bytes=built.peak_memory_bytes,
    )


def measure_apart(case: Case) -> Measured:
    """Likewise in a new process, so that its peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, case).result()


def _adapter(bundle: Path) -> Part:
    return adapter_part(open_bundle(bundle), LIMITS)


def _llm(gguf: Path, precision: str, positions: int, *, on_device: bool = False) -> Part:
    return llm_part(partial(read_llama, gguf), precision, positions, LIMITS, on_device=on_device)


def _qwen() -> Part:
    return llm_part(partial(random_llama, QWEN2_500M, layers=QWEN_LAYERS, query_bias=True), "bf16", SLOT_POSITIONS, LIMITS)


def _t5_encoder() -> Part:
    def write() -> GraphBuilder:
        return build_t5_encoder(random_t5(T5_SMALL), max_tokens=LIMITS.prefill_tokens, float_type=BFLOAT16)

    return Part("llm_encoder", "bf16", 0, text_encoder_profiles(LIMITS), write)


def _t5_decoder() -> Part:
    limits = Limits(prefill_tokens=T5_POSITIONS)
    profiles: Sequence[Profile] = crossing_decoder_profiles(limits)

    def write() -> GraphBuilder:
        return build_t5_decoder(random_t5(T5_SMALL), max_positions=T5_POSITIONS, float_type=BFLOAT16)

    return Part("llm", "bf16", T5_POSITIONS, profiles, write)


def kernels_table(all_measured: Sequence[Measured]) -> list[str]:
    """Kernels a step launches; a plan without slots has one kind of step."""
    lines = [
        "| model | GPU | weights | profile | kernels a step | per layer | fused attentions | waits | activations |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in all_measured:
        names = ["decode", "prefill"] if len(each.report.profiles) == 2 else ["whole"]
        for name, profile in zip(names, each.report.profiles, strict=True):
            cells = [
                each.name,
                each.gpu,
                each.precision,
                name,
                str(profile.kernels),
                str(profile.kernels_per_layer(each.attentions_per_layer)),
                f"{len(profile.attentions)} of {each.layers * each.attentions_per_layer}",
                str(profile.waits),
                f"{profile.activation_bytes / 1e6:.1f} MB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def sizes_table(all_measured: Sequence[Measured]) -> list[str]:
    """What a plan takes on disk, and its build of processor time and memory."""
    lines = [
        "| model | GPU | weights | in the plan | plan | build | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in all_measured:
        report = each.report
        sizes = [f"{report.weight_bytes / 1e6:.0f} MB", f"{report.plan_bytes / 1e6:.0f} MB"]
        costs = [f"{each.processor_s:.1f} s", f"{each.peak_memory_bytes / 1e9:.1f} GB"]
        lines.append(f"| {' | '.join([each.name, each.gpu, each.precision, *sizes, *costs])} |")
    return lines


def fill_page(tables: Mapping[str, Sequence[str]]) -> None:
    """Replace what is between the page's markers of those names."""
    text = PAGE.read_text()
    for name, lines in tables.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, rest = text.split(start, 1)
        text = before + start + "\n".join([*lines, end]) + rest.split(end, 1)[1]
    PAGE.write_text(text)


def write_results(all_measured: Sequence[Measured], version: str) -> None:
    """The page's tables, and the same figures as JSON."""
    machine = f"TensorRT-RTX {version}, Python {platform.python_version()}, {platform.machine()}, no GPU."
    fill_page({"built with": [machine], "kernels": kernels_table(all_measured), "sizes": sizes_table(all_measured)})
    figures: list[dict[str, Any]] = [asdict(each) for each in all_measured]
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.measure_tensorrt", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="print the cases with this in their name, and write nothing")
    options = parser.parse_args()
    bundle = ensure_default_bundle()
    with default_weights(default_cache_dir()) as weights:
        chosen = [case for case in cases(weights, bundle) if options.only in case.name]
        all_measured = [measure_apart(case) for case in tqdm(chosen, unit="plan")]
    if options.only:
        print("\n".join([*kernels_table(all_measured), "", *sizes_table(all_measured)]))
    else:
        write_results(all_measured, load_tensorrt("tensorrt_rtx").version)


if __name__ == "__main__":
    main()
