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
