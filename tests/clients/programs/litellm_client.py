"""LiteLLM: `litellm_client.py WAY URL FILE` prints the transcript, or the answer of a chat."""

import base64
import sys

import litellm


def main(way: str, url: str, path: str) -> None:
    where = {"api_base": f"{url}/v1", "api_key": "unused"}
    with open(path, "rb") as file:
        if way == "file":
            print(litellm.transcription(model="openai/whisper-1", file=file, **where).text)
            return
        speech = {"type": "input_audio", "input_audio": {"data": base64.b64encode(file.read()).decode(), "format": "wav"}}
    question = {"type": "text", "text": "What is said?"}
    reply = litellm.completion(model="openai/whisper-1", messages=[{"role": "user", "content": [question, speech]}], **where)
    print(reply.choices[0].message.content)


main(*sys.argv[1:])
