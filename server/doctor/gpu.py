"""Checks of what serving on a GPU takes. None of them loads a model."""

import importlib
import importlib.metadata
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np

from kernels.gpu_specs import GPU_SPECS
from kernels.tiles import ARCHITECTURES
from models.bundle.io import Bundle
from models.protocols import BackendError
from models.runtimes.cuda.gpu import cuda_version, find_gpu, load_driver
from models.runtimes.cuda.gpu_memory import gigabytes
from server.doctor.checks import Check, CheckResult
from server.doctor.plans import check_gpu_memory, check_plans
from server.settings import Settings

CUDA = 13
"""The major version that torch, onnxruntime-gpu and TensorRT 11 are built with."""
DRIVER_OF_CUDA = 580
TRITON = "3.7.1"
"""What torch 2.13.0 for CUDA demands, and what the kernels' gates were passed with."""
PROVIDER = "CUDAExecutionProvider"
INSTALL = "pip install -c constraints.txt -e '.[gpu]'"
ONE_ONNXRUNTIME = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install --no-deps -c constraints.txt onnxruntime-gpu: "
    "both unpack into the same folder"
)


def gpu_checks(settings: Settings) -> dict[str, Check]:
    """Return the checks for the settings' device, by name; a check returns None if it has nothing to say."""
    if settings.device == "cpu":
        return {"GPU": check_unused_gpu}
    checks: dict[str, Check] = {
        "driver": check_driver,
        "torch": check_torch,
        "onnxruntime on the GPU": partial(check_onnxruntime_gpu, settings),
        "TensorRT": partial(check_tensorrt, settings),
    }
    for number in settings.gpu_numbers:
        checks[f"GPU {number}"] = partial(check_gpu, number)
        if settings.adapter_runtime == "triton":
            checks[f"kernels on GPU {number}"] = partial(check_kernels, number)
    return checks


def gpu_bundle_checks(settings: Settings, bundle: Callable[[], Bundle]) -> dict[str, Check]:
    """Return the checks of a bundle for the settings' device, by name."""
    checks: dict[str, Check] = {}
    for number in settings.gpu_numbers if settings.device != "cpu" else ():
        checks[f"plans for GPU {number}"] = partial(check_plans, settings, number, bundle)
        checks[f"memory of GPU {number}"] = partial(check_gpu_memory, settings, number, bundle)
    return checks


def check_unused_gpu() -> CheckResult | None:
    """Mention a GPU that is not used because the models run on the CPU."""
    try:
        gpu = find_gpu()
    except BackendError:
        return None
    return CheckResult("GPU", f"{gpu.name} found, not used; --device cuda uses it (docs/gpu.md)")


def check_driver() -> CheckResult:
    """Check for an NVIDIA driver, new enough for the CUDA that everything is built with."""
    advice = f"install an NVIDIA driver for CUDA {CUDA}, {DRIVER_OF_CUDA} or later"
    try:
        major, minor = cuda_version(load_driver())
    except BackendError as error:
        return CheckResult("driver", str(error), f"{advice}; a container gets the host's with --gpus")
    return CheckResult("driver", f"serves CUDA {major}.{minor}", advice if major < CUDA else "")


def check_gpu(number: int) -> CheckResult:
    """Check that the GPU exists."""
    try:
        gpu = find_gpu(number)
    except BackendError as error:
        return CheckResult(f"GPU {number}", str(error), "see `nvidia-smi -L`, and choose with --gpus")
    return CheckResult(f"GPU {number}", f"{gpu.name}, {gpu.architecture}, {gigabytes(gpu.memory_bytes)}")


def check_torch() -> CheckResult:
    """Check that torch is a build for our CUDA, and reaches the GPU."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return CheckResult("torch", f"cannot be imported ({error})", INSTALL)
    if torch.version.cuda is None:
        return CheckResult(
            "torch",
            f"{torch.__version__} is a build for CPUs",
            "pip install --force-reinstall torch==2.13.0 without an extra index, which takes the build for CUDA",
        )
    detail = f"{torch.__version__} for CUDA {torch.version.cuda}"
    if int(torch.version.cuda.split(".")[0]) != CUDA:
        return CheckResult("torch", detail, f"install the build for CUDA {CUDA}: docs/gpu.md, Install")
    if not torch.cuda.is_available():
        return CheckResult("torch", f"{detail} sees no GPU", "see the driver above; CUDA_VISIBLE_DEVICES hides GPUs too")
    return CheckResult("torch", f"{detail}, sees {torch.cuda.device_count()} of the GPUs")


def check_onnxruntime_gpu(settings: Settings) -> CheckResult:
    """Check that ONNX Runtime computes on the GPU: it falls back to the CPU without an error."""
    name = "onnxruntime on the GPU"
    versions = {each: _version(each) for each in ("onnxruntime", "onnxruntime-gpu")}
    installed = [f"{each} {version}" for each, version in versions.items() if version]
    if len(installed) == 2:
        return CheckResult(name, f"{' and '.join(installed)} are both installed", ONE_ONNXRUNTIME)
    if settings.encoder_runtime == "tensorrt":
        return CheckResult(name, "not needed: the encoder runs on TensorRT")
    detail = installed[0] if installed else "not installed"
    if not versions["onnxruntime-gpu"]:
        return CheckResult(
            name, f"{detail} is for CPUs" if installed else detail, f"{ONE_ONNXRUNTIME}, or --encoder-runtime tensorrt"
        )
    # Its wheels bring the CUDA libraries, which ONNX Runtime finds where they are loaded already, as in serving.
    with suppress(ImportError, OSError):
        importlib.import_module("torch")
    problem = _try_provider(settings.gpu_numbers[0])
    libraries = (
        f"install CUDA {CUDA}'s libraries and cuDNN 9, as docs/gpu.md says; the messages before this one name what is missing"
    )
    return CheckResult(name, f"{detail} {problem}" if problem else f"{detail} computes on it", libraries if problem else "")


def _try_provider(number: int) -> str:
    """Run a convolution and a product on the GPU; return the fault, or an empty text."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if PROVIDER not in available:
        return f"has no {PROVIDER}, only {', '.join(available)}"
    audio, filters = np.eye(4, dtype=np.float32)[None] * 3, np.ones((4, 4, 1), np.float32)
    try:
        session = onnxruntime.InferenceSession(_small_encoder(), providers=[(PROVIDER, {"device_id": number})])
        # The list holds the CPU's provider in place of one that could not be loaded.
        if session.get_providers()[0] != PROVIDER:
            return f"asked for {PROVIDER} took {session.get_providers()[0]}"
        (result,) = session.run(None, {"audio": audio, "filters": filters})
    except Exception as error:
        return f"cannot run on it: {error}"
    convolved = filters[:, :, 0] @ audio
    return "" if np.array_equal(result, convolved @ convolved) else "multiplied wrongly on it"


def _small_encoder() -> bytes:
    """Return a graph of a convolution, for which ONNX Runtime loads cuDNN only when it runs, and a product."""
    from onnx import TensorProto, helper

    shapes = {"audio": [1, 4, 4], "filters": [4, 4, 1], "result": [1, 4, 4]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["audio", "filters"], ["convolved"]),
        helper.make_node("MatMul", ["convolved", "convolved"], ["result"]),
    ]
    graph = helper.make_graph(nodes, "small_encoder", [values["audio"], values["filters"]], [values["result"]])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    content: bytes = model.SerializeToString()
    return content


def check_tensorrt(settings: Settings) -> CheckResult:
    """Check that the TensorRT that runs the plans is installed."""
    from models.runtimes.cuda.tensorrt_library import TensorRTError, load_tensorrt

    try:
        library = load_tensorrt(settings.tensorrt_library)
    except TensorRTError as error:
        return CheckResult("TensorRT", f"{settings.tensorrt_library} cannot be used", str(error))
    return CheckResult("TensorRT", f"{library.builder} {library.version}")


def check_kernels(number: int) -> CheckResult:
    """Check that the adapter's kernels can be compiled for the GPU."""
    name, other = f"kernels on GPU {number}", "or --adapter-runtime tensorrt"
    try:
        triton = importlib.import_module("triton")
    except (ImportError, OSError) as error:
        return CheckResult(name, f"Triton cannot be imported ({error})", f"{INSTALL}, {other}")
    if triton.__version__ != TRITON:
        return CheckResult(
            name, f"Triton {triton.__version__}, not tried with our kernels", f"pip install triton=={TRITON}, {other}"
        )
    try:
        architecture = find_gpu(number).architecture
    except BackendError as error:
        return CheckResult(name, f"Triton {TRITON}, for which GPU is unknown: {error}", f"see GPU {number}")
    if int(architecture.removeprefix("sm_")) not in ARCHITECTURES:
        known = ", ".join(f"sm_{each}" for each in ARCHITECTURES)
        return CheckResult(name, f"Triton {TRITON}, no tiles for {architecture}, only for {known}", "--adapter-runtime tensorrt")
    try:
        # Triton compiles its way to the driver, once.
        triton.runtime.driver.active.get_current_target()
    except Exception as error:
        compiler = (
            "install gcc and Python's headers, with which Triton builds its launcher (apt-get install gcc libc6-dev python3-dev)"
        )
        return CheckResult(name, f"Triton {TRITON} does not reach the GPU: {error}", f"{compiler}, {other}")
    gpu = GPU_SPECS[int(architecture.removeprefix("sm_"))]
    return CheckResult(name, f"Triton {TRITON}, tiles for {architecture}, which were chosen for a {gpu.name}")


def _version(project: str) -> str | None:
    try:
        return importlib.metadata.version(project)
    except importlib.metadata.PackageNotFoundError:
        return None
