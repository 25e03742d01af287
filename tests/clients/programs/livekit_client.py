"""LiveKit's speech-to-text plugins: `livekit_client.py WAY URL FILE` prints what each utterance became."""

import asyncio
import sys
import wave
from typing import Any

from livekit import rtc
from livekit.agents import stt, utils
from livekit.plugins import deepgram, openai

FRAME_S = 0.1


def read_frames(path: str) -> list[rtc.AudioFrame]:
    """Return a file of 16 bits and one channel in frames, with 2 s of silence behind."""
    with wave.open(path) as file:
        rate_hz, samples = file.getframerate(), file.readframes(file.getnframes()) + bytes(4 * file.getframerate())
    step = round(FRAME_S * rate_hz)
    pieces = [samples[at : at + 2 * step] for at in range(0, len(samples), 2 * step)]
    return [rtc.AudioFrame(piece, rate_hz, 1, len(piece) // 2) for piece in pieces]


def build(way: str, url: str) -> Any:
    """Return the plugin for a way of use."""
    if way.startswith("openai"):
        return openai.STT(model="whisper-1", base_url=f"{url}/v1", api_key="unused", use_realtime=way == "openai-live")
    return deepgram.STT(base_url=f"{url}/v1/listen", api_key="unused")


async def main(way: str, url: str, path: str) -> None:
    async with utils.http_context.open():
        plugin = build(way, url)
        if way.endswith("file"):
            print((await plugin.recognize(read_frames(path))).alternatives[0].text)
            return
        stream = plugin.stream()
        for frame in read_frames(path):
            stream.push_frame(frame)
            await asyncio.sleep(FRAME_S / 4)
        stream.end_input()
        async for event in stream:
            if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
                print(event.alternatives[0].text, flush=True)
                break


asyncio.run(main(*sys.argv[1:]))
