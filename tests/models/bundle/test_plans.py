"""A plan in a bundle is verified like every file, found by what it was built for, and otherwise refused with the command."""

import json
import platform
import shlex
from pathlib import Path

import numpy as np
import pytest

from export.default_bundle import bundle_folder, default_cache_dir
from export.fetch import FetchError
from export.tensorrt_parts import Weights, adapter_part, encoder_part, llm_part
from export.tensorrt_plans import build_into_bundle, main, parse
from export.tensorrt_profiles import Limits
from models.bundle.io import Bundle, BundleError, open_bundle
from models.bundle.plans import DECODE_PROFILE, PREFILL_PROFILE, PlanError, PlanKey, add_plan, find_plan
from models.bundle.sections import PlanSection
from models.graph.writer import BFLOAT16
from models.runtimes.cuda.device import plan_key
from models.runtimes.cuda.tensorrt_library import TensorRTError, load_tensorrt
from server.cli import find_bundle
from server.settings import load_settings
from tests.models.bundle.test_bundle import write_tiny_bundle
from tests.support.simulated_gpu.builder import add_simulated_plan
from tests.support.simulated_gpu.device import SimulatedDevice
from tests.support.tiny.tiny_llama import tiny_llama

H100 = PlanKey("tensorrt", "11.4.0.106", "sm_90")


def section(positions: int, *, key: PlanKey = H100, precision: str = "bf16", part: str = "llm") -> PlanSection:
    return PlanSection(
        part=part,
        file=f"plans/{key.gpu}/{part}-{precision}-{positions}.plan",
        builder="tensorrt",
        builder_version=key.builder_version,
        gpu=key.gpu,
        precision=precision,
        max_positions=positions,
        profiles=({"rows": (1, 8, 32), "tokens": (1, 1, 1)},),
    )


def add(folder: Path, plan: PlanSection, content: bytes = b"plan") -> Bundle:
    loose = folder.parent / "loose.plan"
    loose.write_bytes(content)
    return add_plan(folder, plan, loose)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "tiny bundle")
    return tmp_path / "tiny bundle"


def test_the_shortest_slots_that_are_long_enough_are_found(folder: Path) -> None:
    for positions in (4096, 1024):
        add(folder, section(positions), str(positions).encode())
    bundle = open_bundle(folder)
    for asked, found in ((0, b"1024"), (1024, b"1024"), (1025, b"4096")):
        assert bundle.path(find_plan(bundle, "llm", H100, positions=asked).file).read_bytes() == found
    with pytest.raises(PlanError, match=r"slots of at most 4096 positions, and 5000 are asked for.* --positions 5000`"):
        find_plan(bundle, "llm", H100, positions=5000)


@pytest.mark.parametrize(
    "key",
    [
        PlanKey("tensorrt", "11.4.0.106", "sm_100"),
        PlanKey("tensorrt", "11.5.0.1", "sm_90"),
        PlanKey("tensorrt_rtx", "11.4.0.106", "sm_90"),
        PlanKey("tensorrt", "simulated-1", "sm_00"),
    ],
    ids=str,
)
def test_a_plan_for_anything_else_is_refused_with_the_command_that_builds_one(folder: Path, key: PlanKey) -> None:
    bundle = add(folder, section(1024))
    with pytest.raises(PlanError) as caught:
        find_plan(bundle, "llm", key, positions=1024)
    message = str(caught.value)
    assert f"has no plan of llm for {key}: there are plans for tensorrt 11.4.0.106 on sm_90" in message
    python, flag, module, *arguments = shlex.split(message.split("`")[1])
    assert (python, flag, module) == ("python", "-m", "export.tensorrt_plans")
    options = parse(arguments)
    assert (options.bundle, options.part, options.positions) == (folder, ["llm"], [1024])
    assert (options.builder, options.gpu) == (key.builder, key.gpu)


def test_a_bundle_without_plans_says_so(folder: Path) -> None:
    assert json.loads((folder / "bundle.json").read_text())["plans"] == []
    with pytest.raises(PlanError, match="there is none at all"):
        find_plan(open_bundle(folder), "encoder", H100)


def test_a_new_plan_takes_the_place_of_its_like_and_of_no_other(folder: Path) -> None:
    others = [section(4096), section(1024, key=PlanKey("tensorrt", "11.4.0.106", "sm_80")), section(0, part="encoder")]
    for each in (section(1024), *others, section(1024, precision="int8")):
        add(folder, each)
    bundle = open_bundle(folder)
    assert {plan.file for plan in bundle.manifest.plans} == {each.file for each in (*others, section(1024, precision="int8"))}
    assert find_plan(bundle, "llm", H100).precision == "int8"


def test_a_damaged_or_missing_plan_makes_the_bundle_unusable(folder: Path) -> None:
    file = section(1024).file
    add(folder, section(1024))
    (folder / file).write_bytes(b"plaN")
    with pytest.raises(BundleError, match="is damaged"):
        open_bundle(folder)
    (folder / file).unlink()
    with pytest.raises(BundleError, match="is missing"):
        open_bundle(folder)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX has no package for this processor")
def test_a_built_plan_is_in_the_bundle_with_its_profiles(folder: Path) -> None:
    library = load_tensorrt("tensorrt_rtx")
    part = llm_part(lambda: tiny_llama()[0], "bf16", 128, Limits(decode_rows=4, prefill_tokens=16))
    built = build_into_bundle(library, part, "sm_80", folder)
    bundle = open_bundle(folder)
    plan = find_plan(bundle, "llm", PlanKey("tensorrt_rtx", library.version, "sm_80"), positions=100)
    assert bundle.path(plan.file).read_bytes() == built.content
    assert plan.activation_bytes == built.activation_bytes > 0
    assert plan.profiles[DECODE_PROFILE] == {"rows": (1, 4, 4), "tokens": (1, 1, 1), "wanted": (1, 4, 4)}
    assert plan.profiles[PREFILL_PROFILE]["tokens"] == (1, 16, 16)
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]


def test_a_plan_for_the_simulated_gpu_is_found_by_its_key_and_by_no_other(folder: Path) -> None:
    part = llm_part(lambda: tiny_llama()[0], "fp32", 128, Limits(decode_rows=4, prefill_tokens=16))
    device = SimulatedDevice()
    built = add_simulated_plan(part, folder)
    bundle = open_bundle(folder)
    plan = find_plan(bundle, "llm", plan_key(device), positions=100)
    assert bundle.path(plan.file).read_bytes() == built.content
    assert (plan.precision, plan.max_positions) == ("fp32", 128)
    assert plan.file == "plans/tensorrt-simulated-1-sm_00/llm-fp32-128.plan"
    with pytest.raises(PlanError, match="there are plans for tensorrt simulated-1 on sm_00"):
        find_plan(bundle, "llm", H100)


def test_what_encoder_and_adapter_compute_in_is_in_their_plans_names(folder: Path) -> None:
    bundle, weights = open_bundle(folder), Weights(folder, folder)
    for float_type, name in ((BFLOAT16, "bf16"), (np.float32, "fp32")):
        assert encoder_part(weights, bundle, Limits(), float_type).precision == name
        assert adapter_part(bundle, Limits(), float_type).precision == name


def test_no_plan_is_built_beside_a_decoder_that_knows_the_silence_in_another_way(folder: Path) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["encoder"] |= {"silent_window_s": 30.0, "silent_states": 100}
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(TensorRTError, match=r"an older release condensed the silence .* pull the model again"):
        encoder_part(Weights(folder, folder), open_bundle(folder), Limits())


def test_weights_are_bf16_unless_another_format_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse([]).precision == "bf16"
    with pytest.raises(SystemExit):
        parse(["--precision", "fp32"])
    assert "invalid choice: 'fp32'" in capsys.readouterr().err


def test_plans_go_by_default_to_the_bundle_that_a_gpu_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Path] = []

    def choose(precision: str) -> Path:
        chosen.append(bundle_folder(default_cache_dir(), precision))
        raise FetchError("no wheels here")

    monkeypatch.setattr("export.tensorrt_plans.ensure_default_bundle", choose)
    with pytest.raises(SystemExit, match="no wheels here"):
        main(["--builder", "tensorrt_rtx", "--gpu", "sm_80"])
    assert chosen == [find_bundle(load_settings(device="cuda"))]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX has no package for this processor")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "sm_90"], "does not compile for sm_90"),
        (["--gpu", "sm_80"], "name the weights that bundle tiny was made from, with --gguf and --whisper"),
        (["--gpu", "sm_80", "--bundle", "/nowhere"], "the folder does not exist"),
    ],
)
def test_the_command_says_what_is_wrong(folder: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["--builder", "tensorrt_rtx", "--bundle", str(folder), *arguments])
