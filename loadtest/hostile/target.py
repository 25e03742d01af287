"""The server under attack, which has to be this machine's, and the clip that all clients send to it."""

import argparse
import io
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import soundfile

from loadtest.clients.server import BenchServer, add_server_flags, server_options
from loadtest.support.paths import ROOT, SELF_CHECK_CLIP

RATE_HZ = 16_000

Int16 = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Target:
    """The server under attack, and the clip that is sent to it: 16-bit samples at 16 kHz."""

    url: str
    samples: Int16

    def clip(self, number: int = 0) -> bytes:
        """Return the clip as WAV. Different numbers give different audio, so that no cache has it encoded."""
        buffer = io.BytesIO()
        soundfile.write(buffer, np.roll(self.samples, 160 * number), RATE_HZ, format="WAV")
        return buffer.getvalue()


def check_loopback(url: str) -> None:
    """Raise `ValueError` unless the URL names an IPv4 loopback address."""
    host = urlsplit(url).hostname or ""
    try:
        is_loopback = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(f"{url} is not a loopback address such as http://127.0.0.1:8000; no other server may be attacked.")


def read_target(url: str) -> Target:
    """Return the server and the clip that comes with it."""
    samples, rate_hz = soundfile.read(SELF_CHECK_CLIP, dtype="int16")
    if rate_hz != RATE_HZ:
        raise ValueError(f"{SELF_CHECK_CLIP} is not at {RATE_HZ} Hz")
    return Target(url, samples)


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a tool that attacks a running server, or starts one; `open_target` reads them."""
    parser.add_argument("--url", help="a server at a loopback address; default: one is started")
    add_server_flags(parser)


@contextmanager
def open_target(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Iterator[Target]:
    """Yield the server of `--url`, or one that runs for the block. Ends the program where `--url` is no loopback address."""
    if arguments.url is None:
        with BenchServer(ROOT, server_options(arguments)) as server:
            yield read_target(server.url)
        return
    try:
        check_loopback(arguments.url)
    except ValueError as error:
        parser.error(str(error))
    yield read_target(arguments.url)
