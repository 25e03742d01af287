"""Load TensorRT or TensorRT-RTX: the same builder under two names.

TensorRT builds for the GPU in the machine. TensorRT-RTX compiles ahead of time and needs none, so it is what tests build with.
"""

import importlib
import re
import sys
import types
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

Builder = Literal["tensorrt", "tensorrt_rtx"]
BUILDERS: tuple[Builder, ...] = ("tensorrt", "tensorrt_rtx")

RTX_WHEEL = "onnxruntime_ep_nv_tensorrt_rtx"
"""Holds TensorRT-RTX's libraries and loads them when it is imported."""
HOW_TO_INSTALL = {
    "tensorrt": "pip install -e '.[gpu]'",
    "tensorrt_rtx": "pip install -e '.[dev]'",
}


class TensorRTError(RuntimeError):
    """TensorRT is not there, too old, or could not build what it was given. The message says what to do."""


@dataclass(frozen=True)
class Messages:
    """Messages that the library logged, oldest first, as (severity, text).

    The library has one logger per process: clear this before a build.
    """

    lines: list[tuple[str, str]] = field(default_factory=list)

    def errors(self) -> str:
        """Return the errors, one after the other."""
        return "; ".join(text for severity, text in self.lines if severity in ("ERROR", "INTERNAL_ERROR"))


@dataclass(frozen=True)
class TensorRT:
    """A loaded library. `module` is its Python module; it has no types, so all that comes from it is `Any`."""

    builder: Builder
    module: Any
    messages: Messages
    logger: Any

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def compiles_ahead(self) -> bool:
        """Whether it builds for a GPU that is not there."""
        return hasattr(self.module.IBuilderConfig, "set_compute_capability")

    def targets(self) -> list[str]:
        """Return the architectures that it can compile ahead for, such as `sm_80`."""
        names = dir(self.module.ComputeCapability) if self.compiles_ahead else []
        return sorted((f"sm_{name[2:]}" for name in names if re.fullmatch(r"SM\d+", name)), key=lambda name: int(name[3:]))


@cache
def load_tensorrt(builder: Builder) -> TensorRT:
    """Return the library, imported once per process. Raises `TensorRTError` where it is missing or too old."""
    try:
        module = importlib.import_module("tensorrt") if builder == "tensorrt" else _import_rtx()
    except (ImportError, OSError) as error:
        raise TensorRTError(f"{builder} cannot be imported ({error}): {HOW_TO_INSTALL[builder]}") from error
    if not hasattr(module.IAttention, "key_value_lengths"):
        raise TensorRTError(
            f"{builder} {module.__version__} cannot tell attention how much of a slot is filled; it takes TensorRT 11: "
            f"{HOW_TO_INSTALL[builder]}"
        )
    messages = Messages()
    return TensorRT(builder, module, messages, make_logger(module, messages))


def _import_rtx() -> Any:
    try:
        return importlib.import_module("tensorrt_rtx")
    except ImportError:
        importlib.import_module(RTX_WHEEL)
        # The bindings would load the libraries from this package, which is on another index than PyPI.
        sys.modules.setdefault("tensorrt_rtx_libs", types.ModuleType("tensorrt_rtx_libs"))
        return importlib.import_module("tensorrt_rtx_bindings")


def make_logger(module: Any, messages: Messages) -> Any:
    """Return a logger for the library that writes into `messages`."""
    base: Any = module.ILogger

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            messages.lines.append((severity.name, message))

    return Logger()
