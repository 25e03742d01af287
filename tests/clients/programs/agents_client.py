"""The speech pipeline of OpenAI's agents: `agents_client.py WAY URL FILE` prints what each turn became."""

import asyncio
import sys
import wave
from collections.abc import AsyncIterator

import numpy as np
from agents import set_tracing_disabled
from agents.voice import (
    AudioInput,
    OpenAIVoiceModelProvider,
    StreamedAudioInput,
    VoicePipeline,
    VoicePipelineConfig,
    VoiceWorkflowBase,
)
from openai import AsyncOpenAI

RATE_HZ = 24_000
PIECE = RATE_HZ // 10


class Listener(VoiceWorkflowBase):  # type: ignore[misc]
    """Prints each turn and answers nothing."""

    def __init__(self, heard: asyncio.Event) -> None:
        self._heard = heard

    async def run(self, transcription: str) -> AsyncIterator[str]:
        print(transcription, flush=True)
        self._heard.set()
        answer: tuple[str, ...] = ()
        for text in answer:
            yield text


async def main(way: str, url: str, path: str) -> None:
    set_tracing_disabled(True)
    with wave.open(path) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        at = np.arange(0, len(samples), file.getframerate() / RATE_HZ)
    audio = np.interp(at, np.arange(len(samples)), samples).astype(np.int16)
    provider = OpenAIVoiceModelProvider(openai_client=AsyncOpenAI(base_url=f"{url}/v1", api_key="unused"))
    heard = asyncio.Event()
    config = VoicePipelineConfig(model_provider=provider)
    pipeline = VoicePipeline(workflow=Listener(heard), stt_model="whisper-1", config=config)
    if way == "file":
        await pipeline.run(AudioInput(buffer=audio, frame_rate=RATE_HZ))
    else:
        spoken = StreamedAudioInput()
        await pipeline.run(spoken)
        for start in range(0, len(audio), PIECE):
            await spoken.add_audio(audio[start : start + PIECE])
            await asyncio.sleep(0.025)
    await asyncio.wait_for(heard.wait(), 20)


asyncio.run(main(*sys.argv[1:]))
