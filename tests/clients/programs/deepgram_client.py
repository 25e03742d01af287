"""Deepgram's client: `deepgram_client.py WAY URL FILE` prints what each utterance became."""

import sys
import threading
from pathlib import Path
from typing import Any

from deepgram import DeepgramClient
from deepgram.core.events import EventType
from deepgram.environment import DeepgramClientEnvironment


def show(message: Any) -> None:
    """Print the text of a final result."""
    if message.type == "Results" and message.is_final:
        print(message.channel.alternatives[0].transcript)


def main(way: str, url: str, path: str) -> None:
    here = url.replace("http", "ws", 1)
    environment = DeepgramClientEnvironment(base=url, production=here, agent=here, agent_rest=here)
    client = DeepgramClient(api_key="unused", environment=environment)
    audio = Path(path).read_bytes()
    if way == "file":
        reply = client.listen.v1.media.transcribe_file(request=audio, model="nova-3")
        print(reply.results.channels[0].alternatives[0].transcript)
        return
    with client.listen.v1.connect(model="nova-3", interim_results="true") as connection:
        connection.on(EventType.MESSAGE, show)
        listening = threading.Thread(target=connection.start_listening)
        listening.start()
        connection.send_media(audio)
        connection.send_close_stream()
        listening.join()


main(*sys.argv[1:])
