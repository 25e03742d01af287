"""The attacks by name, each what one client does to a server until it is cancelled."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from loadtest.clients.server import make_body
from loadtest.clients.stream import stream_url
from loadtest.hostile import raw
from loadtest.hostile.raw import ATTACK_ADDRESS, repeated
from loadtest.hostile.target import RATE_HZ, Target
from loadtest.support.instructions import TRANSCRIBE

REQUEST_TIMEOUT_S = 60.0
PAUSE_S = 0.05
Fields = Callable[[int], Mapping[str, str]]
"""Return the further form fields of request number n."""


@dataclass(frozen=True)
class Attack:
    """One kind of attack. `run` is cancelled at its end; `victim_fields` are what the victim asks for meanwhile.

    The victim's clip is repeated `victim_repeats` times.
    """

    summary: str
    run: Callable[[Target], Coroutine[Any, Any, None]]
    victim_fields: Fields = lambda _number: {}
    victim_repeats: int = 1


async def _post_repeatedly(target: Target, fields: Fields, numbers: Iterator[int]) -> None:
    """Post the clip on one connection, each request as soon as the one before is answered; pause after a refusal."""
    transport = httpx.AsyncHTTPTransport(local_address=ATTACK_ADDRESS)
    async with httpx.AsyncClient(base_url=target.url, transport=transport, timeout=REQUEST_TIMEOUT_S) as client:
        while True:
            number = next(numbers)
            body = make_body(target.clip(number), **fields(number))
            with suppress(httpx.HTTPError):
                response = await client.post("/v1/instruct", content=body.content, headers={"content-type": body.content_type})
                if response.status_code == 200:
                    continue
            await asyncio.sleep(PAUSE_S)


def _flood(connections: int, fields: Fields) -> Callable[[Target], Coroutine[Any, Any, None]]:
    """Return an attack that posts on so many connections at once."""

    async def run(target: Target) -> None:
        numbers = itertools.count()
        await asyncio.gather(*(_post_repeatedly(target, fields, numbers) for _ in range(connections)))

    return run


async def _stream_repeatedly(target: Target, messages: Callable[[], Iterable[str | bytes]]) -> None:
    """Open one live session after the other and send its messages as fast as the server reads them."""
    first = json.dumps({"type": "start", "instruction": TRANSCRIBE, "sample_rate_hz": RATE_HZ})
    while True:
        with suppress(WebSocketException, OSError):
            async with connect(
                stream_url(target.url), compression=None, proxy=None, ping_interval=None, local_addr=(ATTACK_ADDRESS, 0)
            ) as connection:
                await connection.send(first)
                reader = asyncio.create_task(_read_all(connection))
                try:
                    for message in messages():
                        await connection.send(message)
                    await connection.send('{"type": "end"}')
                    await reader
                finally:
                    reader.cancel()
        await asyncio.sleep(0.2)


async def _read_all(connection: Any) -> None:
    with suppress(WebSocketException):
        async for _event in connection:
            pass


def _updates() -> Iterator[str | bytes]:
    """Yield updates of the instruction, each followed by 10 ms of silence: every one could be laid out and tokenised."""
    update = json.dumps({"type": "update", "instruction": "7" * 1990})
    for _ in range(40_000):
        yield update
        yield bytes(322)


async def _update_flood(target: Target) -> None:
    await asyncio.gather(*(_stream_repeatedly(target, _updates) for _ in range(12)))


def _speech_flat_out(sessions: int) -> Callable[[Target], Coroutine[Any, Any, None]]:
    """Return an attack whose sessions send two minutes of speech as fast as the server reads."""

    async def run(target: Target) -> None:
        frame_bytes = 8192
        speech = np.resize(target.samples, 120 * RATE_HZ).tobytes()
        frames = [speech[start : start + frame_bytes] for start in range(0, len(speech), frame_bytes)]
        await asyncio.gather(*(_stream_repeatedly(target, lambda: frames) for _ in range(sessions)))

    return run


async def _speech_unread(target: Target) -> None:
    await repeated(50, raw.send_speech_unread(target.samples.tobytes()))(target.url)


async def _nothing(_target: Target) -> None:
    await asyncio.Event().wait()


def _long_answers(_number: int) -> Mapping[str, str]:
    return {"max_tokens": "512", "regex": "[a-z ]{3000,4000}"}


def _heavy_schema(number: int) -> Mapping[str, str]:
    """Return a schema of 1,200 properties that no request before has had."""
    properties = {f"property_{number}_{index}": {"type": "string"} for index in range(1200)}
    return {"json_schema": json.dumps({"type": "object", "properties": properties, "additionalProperties": False})}


def _light_constraint(number: int) -> Mapping[str, str]:
    """Return a small constraint that no request before has had, so that no cache answers it."""
    return {"choice": json.dumps(["yes", "no", f"number {time.monotonic_ns()} {number}"])}


def _raw(attack: raw.Attack) -> Callable[[Target], Coroutine[Any, Any, None]]:
    async def run(target: Target) -> None:
        await attack(target.url)

    return run


ATTACKS = {
    "C1": Attack("12 live sessions flood `update` messages", _update_flood),
    "H4": Attack("one address floods with 40 connections", _flood(40, lambda _number: {})),
    "H4-batch": Attack("the same, as `priority=batch`", _flood(40, lambda _number: {"priority": "batch"})),
    "H5": Attack("4 requests of 512 tokens hold the slots", _flood(4, _long_answers)),
    "H5-18": Attack("18 requests of 512 tokens hold the slots", _flood(18, _long_answers)),
    "M2": Attack("one live session sends flat out", _speech_flat_out(1)),
    "M2-16": Attack("16 live sessions send flat out", _speech_flat_out(16)),
    "M4": Attack("16 connections send heavy constraints", _flood(16, _heavy_schema), _light_constraint),
    "C2": Attack("one connection sends 1-byte chunks to `/health`", _raw(repeated(1, raw.send_one_byte_chunks))),
    "C2-post": Attack("4 connections post 1-byte chunks", _raw(repeated(4, raw.post_one_byte_chunks))),
    "H1": Attack("12 connections break uploads of 33 MB off", _raw(repeated(12, raw.break_upload_off))),
    "H2": Attack("1,100 connections say nothing", _raw(repeated(1100, raw.say_nothing))),
    "H2-half": Attack("600 connections send half a head", _raw(repeated(600, raw.send_half_a_head))),
    "H2-deaf": Attack("50 connections read no answers", _raw(repeated(50, raw.read_no_answers))),
    "H3": Attack("36 connections announce uploads", _raw(repeated(36, raw.announce_upload))),
    "H3-slow": Attack("200 connections send a byte per second", _raw(repeated(200, raw.drip_upload))),
    "H6": Attack("8 connections post 8 MB of `OggS`", _raw(repeated(8, raw.post_ogg_bomb))),
    "M1": Attack("16 live sessions say nothing", _raw(repeated(16, raw.squat)), victim_repeats=20),
    "M3": Attack("40 connections claim other addresses", _raw(repeated(40, raw.pretend_to_be_others))),
    "L8": Attack("8 WebSockets flood pings", _raw(repeated(8, raw.flood_pings))),
    "L8-json": Attack("8 WebSockets send bad JSON and come again", _raw(repeated(8, raw.send_bad_json))),
    "W1": Attack("20 WebSockets leave 15 MiB unfinished", _raw(repeated(20, raw.leave_frame_unfinished))),
    "W2": Attack("50 WebSockets send noise and read no events", _raw(repeated(50, raw.send_noise_unread))),
    "W2-speech": Attack("50 WebSockets send speech and read no events", _speech_unread),
    # The last, because a server that does not replace its decode workers answers nothing afterwards.
    "C3": Attack("the idle decode workers are killed", _nothing),
}


def chosen_attacks(only: list[str] | None) -> list[str]:
    """Return the attacks to run: those named, or those whose name begins with a given one and a hyphen; all without names.

    Raises `ValueError` for a name that is not known.
    """
    for name in only or []:
        if name not in ATTACKS:
            raise ValueError(f"{name} is not an attack; known are {', '.join(ATTACKS)}.")
    return [name for name in ATTACKS if only is None or name in only or name.split("-")[0] in only]
