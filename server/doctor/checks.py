"""Checks of this machine, one line each: what was found and, where it is not right, what to do."""

import asyncio
import io
import os
import platform
import socket
import wave
from collections.abc import Callable
from functools import cache
from pathlib import Path

from models.bundle.io import Bundle, BundleError, open_bundle
from models.runtimes.onnx.machine import available_memory_bytes
from server.audio.decode import AudioLimits
from server.audio.sandbox import DecoderPool
from server.audio.stream import AudioStream
from server.child_process import ChildFailed
from server.doctor.finding import CheckResult
from server.doctor.gpu import gpu_checks
from server.errors import ServeError
from server.settings import Settings

MIN_MEMORY_BYTES = 1536 * 2**20
# What int8 and int4 kernels want, by architecture, and the wider form that makes them fast.
CPU_FLAGS = {"x86_64": ("avx2", ("avx512_vnni", "avx_vnni")), "aarch64": ("asimd", ("asimddp", "i8mm"))}


def examine(settings: Settings, find_bundle: Callable[[], Path]) -> list[CheckResult]:
    """Run every check. A check that breaks is a finding, not an error."""

    # Its files are hashed once, for all checks that look into it.
    @cache
    def bundle() -> Bundle:
        return open_bundle(find_bundle())

    checks: dict[str, Callable[[], CheckResult | None]] = {
        "processor": lambda: check_processor(platform.machine(), _cpu_flags()),
        "memory": check_memory,
        "onnxruntime": check_onnxruntime,
        "audio codecs": check_codecs,
        "audio decoder": lambda: check_decoder(settings),
        "bundle": lambda: check_bundle(find_bundle(), bundle),
        "port": lambda: check_port(settings.host, settings.port),
        **gpu_checks(settings, bundle),
    }
    findings = [_guarded(name, check) for name, check in checks.items()]
    return [finding for finding in findings if finding is not None]


def _guarded(name: str, check: Callable[[], CheckResult | None]) -> CheckResult | None:
    try:
        return check()
    except Exception as error:
        return CheckResult(name, f"the check failed: {error}", "see the error")


def check_processor(architecture: str, flags: set[str]) -> CheckResult:
    """Whether the CPU has the vector instructions that the models' kernels need."""
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
    """Whether there is room for the default bundle and a few requests."""
    available = available_memory_bytes()
    detail = f"{available / 2**30:.1f} GiB available"
    advice = f"free memory until {MIN_MEMORY_BYTES / 2**30:.1f} GiB are available" if available < MIN_MEMORY_BYTES else ""
    return CheckResult("memory", detail, advice)


def check_onnxruntime() -> CheckResult:
    """Whether the models' runtime is installed."""
    try:
        import onnxruntime
    except ImportError as error:
        return CheckResult("onnxruntime", f"cannot be imported ({error})", "pip install onnxruntime")
    return CheckResult("onnxruntime", f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}")


def check_codecs() -> CheckResult:
    """Whether libsndfile reads every format that the server promises."""
    import soundfile

    formats = soundfile.available_formats()
    missing = [name for name in ("FLAC", "OGG", "MP3") if name not in formats]
    missing += [name for name in ("VORBIS", "OPUS") if "OGG" in formats and name not in soundfile.available_subtypes("OGG")]
    detail = f"libsndfile {soundfile.__libsndfile_version__}"
    if missing:
        return CheckResult("audio codecs", f"{detail} without {', '.join(missing)}", "install libsndfile 1.2 or later with them")
    return CheckResult("audio codecs", f"{detail} with FLAC, Vorbis, Opus and MP3; WAV is read by this project")


def check_decoder(settings: Settings) -> CheckResult:
    """Whether a confined decode process starts here and decodes."""
    try:
        samples = asyncio.run(_decode_silence(settings))
    except (ChildFailed, ServeError, OSError) as error:
        return CheckResult("audio decoder", f"does not work: {error}", "raise THINBRIDGE_DECODE_MEMORY_BYTES, or see above")
    return CheckResult("audio decoder", f"a child with {settings.decode_memory_bytes >> 20} MiB decoded {samples} samples")


async def _decode_silence(settings: Settings) -> int:
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
            return len(await stream.read(2 * limits.sample_rate_hz))
    finally:
        await pool.close()


def check_bundle(folder: Path, read: Callable[[], Bundle]) -> CheckResult:
    """Whether the model bundle is there, whole and unchanged; `read` opens it."""
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


def check_port(host: str, port: int) -> CheckResult:
    """Whether the server could listen where it is told to."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return CheckResult("port", f"{host}:{port}: {error.strerror or error}", "stop what uses it, or choose another --port")
    return CheckResult("port", f"{host}:{port} is free")


def _cpu_flags() -> set[str]:
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
