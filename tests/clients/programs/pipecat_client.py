"""Pipecat's speech-to-text services in a pipeline: `pipecat_client.py WAY URL FILE` prints what each utterance became."""

import asyncio
import sys
import wave
from typing import Any

from pipecat.frames.frames import (
    InputAudioRawFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.services.deepgram.stt import DeepgramSTTService
from pipecat.services.openai.stt import OpenAIRealtimeSTTService, OpenAISTTService
from pipecat.tests.utils import SleepFrame, run_test

FRAME_S = 0.1
ANSWER_WAIT_S = 3.0


def read_frames(path: str) -> list[Any]:
    """Return a file of 16 bits and one channel in frames, with 2 s of silence behind."""
    with wave.open(path) as file:
        rate_hz, samples = file.getframerate(), file.readframes(file.getnframes()) + bytes(4 * file.getframerate())
    step = 2 * round(FRAME_S * rate_hz)
    frames: list[Any] = []
    for at in range(0, len(samples), step):
        frames += [InputAudioRawFrame(samples[at : at + step], rate_hz, 1), SleepFrame(FRAME_S / 4)]
    return frames


def build(way: str, url: str) -> Any:
    """Return the service for a way of use."""
    if way == "openai-file":
        return OpenAISTTService(api_key="unused", base_url=f"{url}/v1", settings=OpenAISTTService.Settings(model="whisper-1"))
    if way == "openai-live":
        address = url.replace("http", "ws", 1) + "/v1/realtime"
        detection, settings = {"type": "server_vad"}, OpenAIRealtimeSTTService.Settings(model="whisper-1")
        return OpenAIRealtimeSTTService(api_key="unused", base_url=address, turn_detection=detection, settings=settings)
    return DeepgramSTTService(api_key="unused", base_url=url)


async def main(way: str, url: str, path: str) -> None:
    begin = [SleepFrame(1.0), VADUserStartedSpeakingFrame()]
    end = [VADUserStoppedSpeakingFrame(), SleepFrame(ANSWER_WAIT_S)]
    is_file = way == "openai-file"
    frames = [*(begin if is_file else begin[:1]), *read_frames(path), *(end if is_file else end[1:])]
    down, _ = await run_test(build(way, url), frames_to_send=frames)
    for frame in down:
        if isinstance(frame, TranscriptionFrame):
            print(frame.text)


asyncio.run(main(*sys.argv[1:]))
