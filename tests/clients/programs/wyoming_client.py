"""Home Assistant's protocol by its Python package: `wyoming_client.py WAY URL FILE` prints the transcript."""

import asyncio
import sys
import wave

from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioStart, AudioStop, wav_to_chunks
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info


async def main(_way: str, url: str, path: str) -> None:
    host, _, port = url.rpartition("//")[2].partition(":")
    async with AsyncTcpClient(host, int(port)) as client:
        await client.write_event(Describe().event())
        info = Info.from_event(await client.read_event())
        model = info.asr[0].models[0]
        await client.write_event(Transcribe(name=model.name, language=model.languages[0]).event())
        with wave.open(path) as file:
            await client.write_event(AudioStart(file.getframerate(), file.getsampwidth(), file.getnchannels()).event())
            for chunk in wav_to_chunks(file, samples_per_chunk=1024):
                await client.write_event(chunk.event())
        await client.write_event(AudioStop().event())
        print(Transcript.from_event(await client.read_event()).text)


asyncio.run(main(*sys.argv[1:]))
