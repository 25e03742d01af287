"""The circumstances of a measurement: the machine, the versions, the revision, the date."""

import importlib.metadata
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("onnxruntime", "numpy", "torch", "transformers", "faster-whisper", "ctranslate2", "xllamacpp", "uvicorn", "httpx")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


def describe_machine() -> str:
    """One line: processor, cores, the features that matter here, memory, system."""
    cpu = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpu)
    flags = set(re.findall(r"\w+", (re.search(r"(?:flags|Features)\s*: (.*)", cpu) or [""])[0]))
    cores = len(re.findall(r"^processor\s*:", cpu, re.MULTILINE))
    kib = int(re.findall(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[0])
    features = " ".join(feature for feature in FEATURES if feature in flags)
    name = model[1] if model else platform.machine()
    return f"{name}, {cores} cores, {features or 'no vector features known'}, {kib / 2**20:.0f} GiB, {platform.platform()}"


def describe_run(root: Path) -> dict[str, Any]:
    """Date, revision (marked where files differ from it), machine, load before the run, versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "git_revision": _git(root, "rev-parse", "HEAD") + ("-modified" if _git(root, "status", "--porcelain", "-uno") else ""),
        "machine": describe_machine(),
        "load_average_before": Path("/proc/loadavg").read_text().split()[0],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
