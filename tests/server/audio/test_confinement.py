"""A confined decoder opens no file and no socket, and starts nothing."""

import asyncio
import platform
import subprocess
import sys

import pytest

from server.audio.confinement import ARCHITECTURES
from server.audio.sandbox import DecoderPool
from tests.support.decoders import CLIP, decode, run_with_pool

PROGRAM = """
import os, socket, sys, threading
from server.audio.confinement import confine_decoder
from server.confined_child import confine
confine(2**30)
missing = confine_decoder()
def refused(attempt):
    try:
        attempt()
    except (PermissionError, RuntimeError):
        return True
    return False
attempts = [
    lambda: open("/etc/passwd"),
    lambda: open("/tmp/anything", "w"),
    lambda: os.listdir("/"),
    lambda: socket.socket(),
    lambda: socket.socket(socket.AF_UNIX),
    lambda: os.fork(),
    lambda: os.kill(os.getppid(), 0),
    lambda: os.execv(sys.executable, [sys.executable, "-c", "0"]),
    lambda: threading.Thread(target=print).start(),
]
sys.stdout.write(f"{','.join(missing)} {[refused(attempt) for attempt in attempts].count(False)}")
"""


@pytest.mark.skipif(platform.machine() not in ARCHITECTURES, reason="seccomp's numbers are of two architectures")
def test_what_decoding_does_not_need_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    missing, allowed = done.stdout.split(" ")
    if "seccomp" in missing:
        pytest.skip("this kernel has no seccomp")
    assert allowed == "0"


def test_a_pool_tells_what_is_missing() -> None:
    async def use(pool: DecoderPool) -> None:
        assert set(filter(None, pool.missing_protection.split(", "))) <= {"Landlock", "seccomp"}
        assert len(await decode(pool, CLIP)) == 16_000
        await asyncio.sleep(0)

    run_with_pool(use)


SPARE = """
import re, resource
from pathlib import Path
from server.audio.worker import SPARE_BYTES, require_spare_memory

def held_bytes():
    return 1024 * int(re.findall(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[0])

before = held_bytes()
for _ in range(5):
    require_spare_memory()
kept = held_bytes() - before
address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (address_space + SPARE_BYTES // 2,) * 2)
try:
    require_spare_memory()
except MemoryError:
    print(kept)
"""


def test_to_ask_for_spare_memory_keeps_none() -> None:
    done = subprocess.run([sys.executable, "-c", SPARE], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 2**20
