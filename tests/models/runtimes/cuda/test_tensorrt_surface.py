"""All that this project uses of TensorRT is in TensorRT 11 as in TensorRT-RTX, which the other tests build with; so is all that
the simulated GPU acts of it.

TensorRT 11's Python bindings need its libraries only to build. Here they are loaded over empty ones, and asked for names.
"""

import ast
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from enum import Enum
from importlib.util import find_spec
from pathlib import Path

import pytest

from models.runtimes.cuda.tensorrt_library import load_tensorrt
from tests.support.simulated_gpu.context import IExecutionContext, ILogger
from tests.support.simulated_gpu.device import SimulatedDevice
from tests.support.simulated_gpu.tensorrt import (
    DataType,
    ExecutionContextAllocationStrategy,
    ICudaEngine,
    Runtime,
    TensorIOMode,
    TensorLocation,
)

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX has no package for this processor")

ROOT = Path(__file__).parents[4]
SOURCES = sorted([*(ROOT / "export").glob("tensorrt_*.py"), *(ROOT / "models" / "cuda").glob("*.py")])
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
AHEAD_ONLY = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
"""The classes that `TensorRT.compiles_ahead` guards."""
OF_OTHERS = {"itemsize"}
"""A member of torch's types, which TensorRT-RTX's have too."""

LIST_NAMES = """
import ctypes, importlib.util, inspect, json, sys

for library in sys.argv[2:]:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
spec = importlib.util.spec_from_file_location("tensorrt", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps({name: dir(value) for name, value in vars(module).items() if inspect.isclass(value)}))
"""


def used_names(sources: Sequence[Path] = SOURCES) -> set[str]:
    """Every attribute that the sources read, of TensorRT's objects or others."""
    trees = [ast.parse(path.read_text()) for path in sources]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.fixture(scope="module")
def tensorrt_11(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The members of TensorRT 11's classes."""
    spec = find_spec("tensorrt_bindings")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "stub.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    paths = [folder / f"lib{name}.so.11" for name in LIBRARIES]
    for path in paths:
        command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", str(path), str(folder / "stub.c")]
        try:
            subprocess.run(command, check=True)
        except FileNotFoundError:
            pytest.skip("there is no gcc to make empty libraries with")
    binding = Path(spec.origin).parent / "tensorrt.so"
    listed = subprocess.run(
        [sys.executable, "-c", LIST_NAMES, str(binding), *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert listed.returncode == 0, listed.stderr
    classes: dict[str, list[str]] = json.loads(listed.stdout)
    return classes


def test_every_class_and_member_in_use_is_in_tensorrt_11(tensorrt_11: dict[str, list[str]]) -> None:
    used = used_names() - AHEAD_ONLY - OF_OTHERS
    rtx = load_tensorrt("tensorrt_rtx").module
    classes = {name for name in used if name in vars(rtx) and isinstance(getattr(rtx, name), type)}
    assert {"Builder", "OnnxParser", "IAttentionInputLayer", "CausalMaskKind"} <= classes
    assert classes <= tensorrt_11.keys()
    for name, members in tensorrt_11.items():
        if hasattr(rtx, name):
            ours = set(dir(getattr(rtx, name))) - set(dir(object))
            assert used & ours <= set(members), name
            assert used & set(members) - set(dir(object)) <= ours, name


@pytest.mark.parametrize(
    "stand_in", [Runtime, ICudaEngine, IExecutionContext, ILogger], ids=lambda stand_in: str(stand_in.__name__)
)
def test_the_simulated_gpu_has_no_method_that_tensorrt_lacks(tensorrt_11: dict[str, list[str]], stand_in: type) -> None:
    ours = {name for name in vars(stand_in) if not name.startswith("_")}
    assert ours
    assert ours <= set(tensorrt_11[stand_in.__name__])
    assert ours <= set(dir(getattr(load_tensorrt("tensorrt_rtx").module, stand_in.__name__)))


@pytest.mark.parametrize(
    "stand_in",
    [TensorIOMode, TensorLocation, DataType, ExecutionContextAllocationStrategy],
    ids=lambda stand_in: str(stand_in.__name__),
)
def test_the_simulated_gpus_enumerations_are_tensorrts(tensorrt_11: dict[str, list[str]], stand_in: type[Enum]) -> None:
    theirs = getattr(load_tensorrt("tensorrt_rtx").module, stand_in.__name__).__members__
    assert {name: each.value for name, each in stand_in.__members__.items()}.items() <= {
        name: int(each) for name, each in theirs.items()
    }.items()
    assert stand_in.__members__.keys() <= set(tensorrt_11[stand_in.__name__])


def test_what_runs_a_plan_calls_what_tensorrts_objects_have(tensorrt_11: dict[str, list[str]]) -> None:
    held = {"_runtime": "Runtime", "engine": "ICudaEngine", "_context": "IExecutionContext"}
    called: dict[str, set[str]] = {name: set() for name in held.values()}
    for node in ast.walk(ast.parse((ROOT / "models" / "runtimes" / "cuda" / "plan.py").read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr in held:
            called[held[node.value.attr]].add(node.attr)
    rtx = load_tensorrt("tensorrt_rtx").module
    for name, members in called.items():
        assert members, name
        assert members <= set(tensorrt_11[name]) & set(dir(getattr(rtx, name)))


def test_the_simulated_module_is_what_runtimes_use_of_tensorrts(tensorrt_11: dict[str, list[str]]) -> None:
    names = vars(SimulatedDevice().tensorrt.module).keys()
    assert names - {"__version__"} <= tensorrt_11.keys()
    assert "__version__" in vars(load_tensorrt("tensorrt_rtx").module)
    runtimes = [path for path in SOURCES if path.parent.name == "cuda" and not path.name.startswith("tensorrt_")]
    assert tensorrt_11.keys() & used_names(runtimes) <= names


def test_tensorrt_11_can_tell_attention_its_lengths_and_the_corner(tensorrt_11: dict[str, list[str]]) -> None:
    assert {"key_value_lengths", "causal_kind", "decomposable"} <= set(tensorrt_11["IAttention"])
    assert "LOWER_RIGHT" in tensorrt_11["CausalMaskKind"]


def test_only_rtx_compiles_ahead(tensorrt_11: dict[str, list[str]]) -> None:
    assert load_tensorrt("tensorrt_rtx").compiles_ahead
    assert not AHEAD_ONLY & {"ComputeCapability" if "ComputeCapability" in tensorrt_11 else "", *tensorrt_11["IBuilderConfig"]}
