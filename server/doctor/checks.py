"""Checks that every machine has to pass, and the result of a check."""

import asyncio
import io
import os
import platform
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.bundle.io import Bundle, BundleError
from models.protocols import BackendError
from models.runtimes.onnx.machine import available_memory_bytes, processor_features
from server.audio.sandbox import DecoderPool
from server.audio.stream import AudioStream
from server.audio.types import AudioLimits
from server.child_process import ChildFailed
from server.errors import ServeError
from server.registry.room import check_room
from server.settings import Settings

MIN_MEMORY_BYTES = 1536 * 2**20
# Vector instructions that int8 and int4 kernels need, by architecture, and wider ones that make them fast.
CPU_FLAGS = {"x86_64": ("avx2", ("avx512_vnni", "avx_vnni")), "aarch64": ("asimd", ("asimddp", "i8mm"))}

PROMISED_CODECS = {"pcm_s16le", "mp3", "aac", "opus", "vorbis", "flac", "alac", "amrnb", "amrwb", "wmav2"}


@dataclass(frozen=True)
class CheckResult:
    """The result of one check. `advice` is empty if there is nothing to do."""

    name: str
    detail: str
    advice: str = ""

    def line(self) -> str:
        """Return one line, even if a library's error in it has several."""
        text = f"{self.name}: {self.detail}" + (f" -> {self.advice}" if self.advice else "")
        return ("FAIL " if self.advice else "ok   ") + " ".join(text.split())


Check = Callable[[], CheckResult | None]


def machine_checks(settings: Settings) -> dict[str, Check]:
    """Return the checks of any machine, by name."""
    return {
        "processor": lambda: check_processor(platform.machine(), processor_features()),
        "memory": check_memory,
        "onnxruntime": check_onnxruntime,
        "audio codecs": check_codecs,
        "audio decoder": lambda: check_decoder(settings),
    }


def check_processor(architecture: str, flags: set[str]) -> CheckResult:
    """Check that the CPU has the vector instructions that the models' kernels need."""
    cores = os.cpu_count() or 1
    if architecture not in CPU_FLAGS:
        return CheckResult("processor", f"{architecture}, {cores} cores, not a kind that was tried")
    needed, wider = CPU_FLAGS[architecture]
    found = [flag for flag in wider if flag in flags]
    detail = f"{architecture}, {cores} cores, {', '.join([needed, *found]) if needed in flags else 'without ' + needed}"
    if needed not in flags:
        return CheckResult("processor", detail, f"use a machine whose CPU has {needed}; this one would be very slow")
    return CheckResult(
        "processor", detail if found else f"{detail}, no {' or '.join(wider)}: int8 and int4 run slower than they could"
    )


def check_memory() -> CheckResult:
    """Check that the default bundle and a few requests fit into memory."""
    available = available_memory_bytes()
    detail = f"{available / 2**30:.1f} GiB available"
    advice = f"free memory until {MIN_MEMORY_BYTES / 2**30:.1f} GiB are available" if available < MIN_MEMORY_BYTES else ""
    return CheckResult("memory", detail, advice)


def check_room_for(settings: Settings, find_bundles: Mapping[str, Callable[[], Path]]) -> CheckResult | None:
    """Check that the models fit into memory together; of models that do not exist yet nothing is known."""
    folders = [folder for find in find_bundles.values() if (folder := find()).exists()]
    try:
        check_room(folders, settings)
    except BackendError as error:
        return CheckResult("memory for all models", str(error), "serve fewer models, or with fewer --slots")
    return CheckResult("memory for all models", f"{len(folders)} of {len(find_bundles)} models are built, and fit")


def check_onnxruntime() -> CheckResult:
    """Check that the models' runtime is installed."""
    try:
        import onnxruntime
    except ImportError as error:
        return CheckResult("onnxruntime", f"cannot be imported ({error})", "pip install onnxruntime")
    return CheckResult("onnxruntime", f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}")


def check_codecs() -> CheckResult:
    """Check that FFmpeg's decoders are there for every format that the server promises."""
    try:
        import av
    except ImportError as error:
        return CheckResult("audio codecs", f"cannot be imported ({error})", "pip install av")
    missing = sorted(PROMISED_CODECS - av.codecs_available)
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    detail = f"PyAV {av.__version__}, libavcodec {version}"
    if missing:
        return CheckResult("audio codecs", f"{detail} without {', '.join(missing)}", "install PyAV from its wheel")
    return CheckResult("audio codecs", f"{detail} with {', '.join(sorted(PROMISED_CODECS))}")


def check_decoder(settings: Settings) -> CheckResult:
    """Check that a confined decode process starts here and decodes."""
    try:
        samples, missing = asyncio.run(_decode_silence(settings))
    except (ChildFailed, ServeError, OSError) as error:
        return CheckResult("audio decoder", f"does not work: {error}", "raise THINBRIDGE_DECODE_MEMORY_BYTES, or see the error")
    confined = f"without {missing}" if missing else "confined by Landlock and seccomp"
    detail = f"a child with {settings.decode_memory_bytes >> 20} MiB, {confined}, decoded {samples} samples"
    return CheckResult("audio decoder", detail)


async def _decode_silence(settings: Settings) -> tuple[int, str]:
    """Return the number of decoded samples, and the protections that are missing."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 8000, 0, "NONE", ""))
        writer.writeframes(bytes(2 * 8000))
    limits = AudioLimits(sample_rate_hz=16_000, min_audio_s=0.1, max_audio_s=2.0)
    pool = DecoderPool(
        1,
        limits,
        timeout_s=settings.decode_timeout_s,
        memory_bytes=settings.decode_memory_bytes,
        max_waiting=1,
        max_streams=0,
    )
    await pool.start()
    try:
        with await AudioStream.open(pool, file.getvalue()) as stream:
            return len(await stream.read(2 * limits.sample_rate_hz)), pool.missing_protection
    finally:
        await pool.close()


def check_bundle(folder: Path, read: Callable[[], Bundle]) -> CheckResult:
    """Check that the model bundle exists, whole and unchanged; `read` opens it."""
    if not folder.exists():
        return CheckResult(
            "bundle", f"{folder} does not exist", "`thinbridge serve` builds the default bundle; --bundle names another"
        )
    try:
        manifest = read().manifest
    except BundleError as error:
        return CheckResult("bundle", str(error), "delete the folder and run `thinbridge serve`")
    size = sum(entry.bytes for entry in manifest.files.values())
    return CheckResult("bundle", f"{manifest.name}, {len(manifest.files)} files, {size / 1e6:.0f} MB, every sha256 right")
