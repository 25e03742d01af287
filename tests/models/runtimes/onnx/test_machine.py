"""The quota of a container counts, not the cores of its host; products of bytes are exact where the processor makes them so."""

import os
from pathlib import Path

import pytest

from models.runtimes.onnx.machine import adds_byte_products_exactly, available_memory_bytes, cpu_quota, usable_cores

CORES = len(os.sched_getaffinity(0))


def group(root: Path, path: str, content: str) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(content)


def test_without_a_quota_all_allowed_cores_are_usable(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    group(tmp_path, "", "max 100000\n")
    assert cpu_quota(tmp_path) is None
    assert usable_cores(tmp_path) == CORES


@pytest.mark.parametrize(("content", "cores"), [("50000 100000", 0.5), ("100000 100000\n", 1.0), ("250000 100000", 2.5)])
def test_the_quota_of_a_container_is_read(tmp_path: Path, content: str, cores: float) -> None:
    group(tmp_path, "", content)
    assert cpu_quota(tmp_path) == cores
    assert usable_cores(tmp_path) == max(1, min(CORES, round(cores + 0.49)))


def test_the_least_quota_of_all_groups_above_counts(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/thinbridge.service\n")
    group(tmp_path, "system.slice", "100000 100000")
    group(tmp_path, "system.slice/thinbridge.service", "max 100000")
    assert cpu_quota(tmp_path) == 1.0


@pytest.mark.parametrize(("quota", "cores"), [("200000\n", 2.0), ("-1\n", None)])
def test_the_first_version_of_control_groups_is_read(tmp_path: Path, quota: str, cores: float | None) -> None:
    folder = tmp_path / "sys/fs/cgroup/cpu"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) == cores


@pytest.mark.parametrize(
    ("architecture", "line", "exact"),
    [
        ("x86_64", "flags\t\t: fpu avx2 avx512_vnni", True),
        ("x86_64", "flags\t\t: fpu avx2 avx_vnni", True),
        ("x86_64", "flags\t\t: fpu avx2 avx512f", False),
        ("x86_64", "", False),
        ("aarch64", "Features\t: fp asimd", True),
    ],
)
def test_byte_products_are_exact_with_vnni_and_off_x86(tmp_path: Path, architecture: str, line: str, exact: bool) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n")
    assert adds_byte_products_exactly(architecture, tmp_path) is exact


def test_free_memory_is_that_of_the_machine_or_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:       8000 kB\nMemAvailable:   4000 kB\n")
    assert available_memory_bytes(tmp_path) == 4000 * 1024
    folder = tmp_path / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    figures = {"memory.max": "max", "memory.current": "1000000", "memory.stat": "anon 500\ninactive_file 300000\n"}
    for name, text in figures.items():
        (folder / name).write_text(text)
    assert available_memory_bytes(tmp_path) == 4000 * 1024
    (folder / "memory.max").write_text("2000000\n")
    assert available_memory_bytes(tmp_path) == 1_300_000
    (folder / "memory.max").write_text("500000\n")
    assert available_memory_bytes(tmp_path) == 0
