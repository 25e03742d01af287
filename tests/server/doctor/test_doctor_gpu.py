"""The doctor on a GPU machine: each line says that something is right, or what to do."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.bundle.io import Bundle, open_bundle
from models.bundle.plans import add_plan
from models.bundle.sections import PlanSection
from models.runtimes.cuda.tensorrt_library import load_tensorrt
from server import cli
from server.doctor import gpu as doctor_gpu
from server.doctor import run_checks
from server.doctor.checks import CheckResult
from server.settings import Settings, load_settings
from tests.models.bundle.test_bundle import write_tiny_bundle
from tests.support.fakes.fake_gpu_machine import Driver, GpuMachine

PARTS = ("encoder", "adapter", "llm")
PROFILE = {"rows": (1, 8, 32), "tokens": (1, 1, 1), "wanted": (1, 8, 32)}


@pytest.fixture
def machine() -> Iterator[GpuMachine]:
    yield GpuMachine()
    load_tensorrt.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle with plans for an H100."""
    folder = tmp_path / "tiny"
    write_tiny_bundle(folder)
    for part in PARTS:
        add(folder, part, "tensorrt", "11.4.0.106", "sm_90")
    return folder


def add(folder: Path, part: str, builder: Any, version: str, architecture: str) -> Bundle:
    loose = folder.parent / "loose.plan"
    loose.write_bytes(b"plan")
    plan = PlanSection(
        part=part,
        file=f"plans/{builder}-{architecture}/{part}.plan",
        builder=builder,
        builder_version=version,
        gpu=architecture,
        precision="bf16",
        max_positions=2048 if part == "llm" else 0,
        activation_bytes=30_000_000,
        profiles=(PROFILE,),
    )
    return add_plan(folder, plan, loose)


def findings(folder: Path, settings: Settings) -> dict[str, CheckResult]:
    """Return the results of the GPU's checks."""
    names = re.compile("driver|torch|onnxruntime on|TensorRT|.*GPU")
    return {finding.name: finding for finding in run_checks(settings, {"tiny": lambda: folder}) if names.match(finding.name)}


def cuda(**settings: Any) -> Settings:
    return load_settings(device="cuda", port=0, **settings)


def test_a_machine_as_it_should_be(machine: GpuMachine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install(monkeypatch)
    found = findings(folder, cuda())
    assert [finding for finding in found.values() if finding.advice] == []
    assert {name: finding.detail for name, finding in found.items() if name != "memory of GPU 0"} == {
        "driver": "serves CUDA 13.1",
        "torch": "2.13.0 for CUDA 13.0, sees 1 of the GPUs",
        "onnxruntime on the GPU": "onnxruntime-gpu 1.31.1 computes on it",
        "TensorRT": "tensorrt 11.4.0.106",
        "GPU 0": "NVIDIA H100 80GB HBM3, sm_90, 85.90 GB",
        "kernels on GPU 0": "Triton 3.7.1, tiles for sm_90, which were chosen for a H100 SXM",
        "plans for GPU 0": "llm in bf16, for tensorrt 11.4.0.106 on sm_90",
    }
    memory = found["memory of GPU 0"].detail
    assert re.match(r"85\.90 GB, of which a server takes \d\.\d+ GB: 32 slots of 47\.2 MB 1\.51 GB, LLM ", memory)
    assert "its activations 30.0 MB" in memory
    assert re.search(r"; \d{4} slots would fit$", memory)


@pytest.mark.parametrize(
    ("change", "name", "detail", "advice"),
    [
        ({"driver": None}, "driver", "no NVIDIA driver", "580 or later; a container gets the host's with --gpus"),
        ({"driver": None}, "GPU 0", "no NVIDIA driver", "nvidia-smi -L"),
        ({"driver": None}, "plans for GPU 0", "cannot be looked for: this machine has no NVIDIA driver", "first"),
        ({"driver": None}, "kernels on GPU 0", "for which GPU is unknown", "see GPU 0"),
        ({"driver": Driver(version=12080)}, "driver", "serves CUDA 12.8", "for CUDA 13, 580 or later"),
        ({"driver": Driver(count=0)}, "GPU 0", "the NVIDIA driver shows 0", "choose with --gpus"),
        (
            {"driver": Driver(architecture=(8, 9))},
            "kernels on GPU 0",
            "no tiles for sm_89, only for",
            "--adapter-runtime tensorrt",
        ),
        (
            {"driver": Driver(architecture=(10, 0))},
            "plans for GPU 0",
            "1 of 1 are missing",
            "python -m export.tensorrt_plans .*sm_100",
        ),
        ({"driver": Driver(memory_bytes=2_400_000_000)}, "memory of GPU 0", r"(\d+) slots would fit", r"--slots \d+ at most"),
        ({"driver": Driver(memory_bytes=10**9)}, "memory of GPU 0", "; 0 slots would fit", "use a larger GPU"),
        ({"missing": ["torch"]}, "torch", "cannot be imported", r"pip install .*\[gpu\]"),
        ({"cuda": None}, "torch", "2.13.0 is a build for CPUs", "--force-reinstall torch==2.13.0"),
        ({"cuda": "12.8"}, "torch", "for CUDA 12.8", "build for CUDA 13"),
        ({"torch_sees": 0}, "torch", "sees no GPU", "CUDA_VISIBLE_DEVICES"),
        ({"packages": {}}, "onnxruntime on the GPU", "not installed", "--no-deps"),
        ({"packages": {"onnxruntime": "1.32.0"}}, "onnxruntime on the GPU", "1.32.0 is for CPUs", "--encoder-runtime tensorrt"),
        (
            {"packages": {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}},
            "onnxruntime on the GPU",
            "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are both installed",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install --no-deps .* same folder",
        ),
        ({"available": ["CPUExecutionProvider"]}, "onnxruntime on the GPU", "has no CUDAExecutionProvider", "cuDNN 9"),
        ({"taken": ["CPUExecutionProvider"]}, "onnxruntime on the GPU", "took CPUExecutionProvider", "CUDA 13's libraries"),
        (
            {"error": RuntimeError("no kernel image")},
            "onnxruntime on the GPU",
            "cannot run on it: no kernel image",
            "docs/gpu.md",
        ),
        ({"factor": 2.0}, "onnxruntime on the GPU", "multiplied wrongly", "docs/gpu.md"),
        ({"missing": ["tensorrt"]}, "TensorRT", "tensorrt cannot be used", r"pip install -e '\.\[gpu\]'"),
        ({"missing": ["tensorrt"]}, "memory of GPU 0", "cannot be estimated: tensorrt cannot be imported", "first"),
        ({"attention": object}, "TensorRT", "tensorrt cannot be used", "it takes TensorRT 11"),
        ({"missing": ["triton"]}, "kernels on GPU 0", "Triton cannot be imported", "--adapter-runtime tensorrt"),
        (
            {"triton_error": RuntimeError("no C compiler")},
            "kernels on GPU 0",
            "does not reach the GPU: no C compiler",
            "install gcc",
        ),
        ({"triton": "3.9.0"}, "kernels on GPU 0", "Triton 3.9.0, not tried", "pip install triton==3.7.1"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(
    machine: GpuMachine,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    name: str,
    detail: str,
    advice: str,
) -> None:
    for attribute, value in change.items():
        setattr(machine, attribute, value)
    machine.install(monkeypatch)
    finding = findings(folder, cuda())[name]
    assert re.search(detail, finding.detail)
    assert re.search(advice, finding.advice)


def test_what_the_settings_do_not_need_is_not_asked_for(
    machine: GpuMachine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.missing, machine.packages = ["triton"], {"onnxruntime": "1.32.0"}
    machine.install(monkeypatch)
    found = findings(folder, cuda(encoder_runtime="tensorrt", adapter_runtime="tensorrt"))
    assert [finding for finding in found.values() if finding.advice] == []
    assert "kernels on GPU 0" not in found
    assert found["plans for GPU 0"].detail.startswith("encoder in bf16, adapter in bf16, llm in bf16")


def test_more_slots_than_the_plan_decodes_are_refused(machine: GpuMachine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install(monkeypatch)
    finding = findings(folder, cuda(slots=33))["plans for GPU 0"]
    assert finding.detail == "the LLM's decodes 32 requests at a time, and there are 33 slots"
    assert finding.advice == "--slots 32 at most, or build it with `--part llm --decode-rows 33`"
    assert not findings(folder, cuda(slots=32))["plans for GPU 0"].advice


def test_an_encoder_in_eight_bits_is_for_cpus(machine: GpuMachine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install(monkeypatch)
    bundle = open_bundle(folder)
    encoder = bundle.manifest.encoder.model_copy(update={"precision": "int8"})
    monkeypatch.setattr(
        "server.doctor.open_bundle",
        lambda _folder: Bundle(bundle.folder, bundle.manifest.model_copy(update={"encoder": encoder})),
    )
    finding = findings(folder, cuda())["plans for GPU 0"]
    assert "encoder is in int8" in finding.detail
    assert "--precision fp32" in finding.advice
    assert not findings(folder, cuda(encoder_runtime="tensorrt"))["plans for GPU 0"].advice


def test_every_gpu_is_looked_at(machine: GpuMachine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.driver = Driver(count=3)
    machine.install(monkeypatch)
    found = findings(folder, cuda(gpus="0,2,5"))
    assert [number for number in (0, 2, 5) if found[f"GPU {number}"].advice] == [5]
    assert [number for number in (0, 2, 5) if found[f"memory of GPU {number}"].advice] == [5]


def test_without_a_bundle_there_are_no_plans_to_look_for(
    machine: GpuMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install(monkeypatch)
    found = findings(tmp_path / "nothing", cuda())
    assert all("does not exist" in found[name].detail for name in ("plans for GPU 0", "memory of GPU 0"))


def test_the_bundle_is_read_once(machine: GpuMachine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install(monkeypatch)
    opened: list[Path] = []

    def counting(path: Path) -> Bundle:
        opened.append(path)
        return open_bundle(path)

    monkeypatch.setattr("server.doctor.open_bundle", counting)
    findings(folder, cuda())
    assert opened == [folder]


def test_an_unused_gpu_is_mentioned_and_its_absence_is_not(
    machine: GpuMachine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(port=0)
    machine.install(monkeypatch)
    assert [finding.line() for finding in findings(folder, settings).values()] == [
        "ok   GPU: NVIDIA H100 80GB HBM3 found, not used; --device cuda uses it (docs/gpu.md)"
    ]
    machine.driver = None
    assert findings(folder, settings) == {}


def test_onnx_runtime_computes_by_the_provider_that_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the installed runtime, whose CPU provider takes no number of a GPU."""
    monkeypatch.setattr(doctor_gpu, "PROVIDER", "CPUExecutionProvider")
    assert doctor_gpu._try_provider(0) == ""
    monkeypatch.setattr(doctor_gpu, "PROVIDER", "NoExecutionProvider")
    assert doctor_gpu._try_provider(0).startswith("has no NoExecutionProvider, only ")


def test_a_finding_is_one_line() -> None:
    assert (
        CheckResult("probe", "cannot run:\n  no cuDNN\n", "install it").line() == "FAIL probe: cannot run: no cuDNN -> install it"
    )


def test_the_command_fails_where_a_gpu_is_missing(
    machine: GpuMachine, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.driver = None
    machine.install(monkeypatch)
    assert cli.main(["doctor", "--bundle", str(folder), "--device", "cuda"]) == 1
    assert "FAIL driver: this machine has no NVIDIA driver" in capsys.readouterr().out
