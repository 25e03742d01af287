"""The server's first request, to itself over its own HTTP endpoint: proof that the whole chain works."""

import http.client
import json
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

CLIP = Path(__file__).parents[1] / "assets" / "selfcheck.flac"
INSTRUCTION = "Transcribe the speech to text."
TIMEOUT_S = 60.0


class SelfCheckError(RuntimeError):
    """The server gave no answer, or an error."""


@dataclass(frozen=True)
class SelfCheck:
    """What came back for the bundled clip, and how long the client waited."""

    text: str
    audio_s: float
    latency_s: float


def run_self_check(url: str, clip: Path = CLIP) -> SelfCheck:
    """Send `clip` and the instruction to transcribe it. Raises `SelfCheckError`."""
    if not clip.exists():
        raise SelfCheckError(f"The clip for the self-check is not there: {clip}.")
    boundary = uuid.uuid4().hex
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    started_s = time.perf_counter()
    try:
        status, content = _post(url, _body(clip.read_bytes(), boundary), headers)
        reply = json.loads(content)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SelfCheckError(f"The server did not answer: {error}.") from None
    latency_s = time.perf_counter() - started_s
    if status != 200:
        raise SelfCheckError(f"The server answered {status}: {reply['error']['message']}")
    return SelfCheck(reply["text"], reply["audio_s"], latency_s)


def curl_line(url: str, clip: Path = CLIP) -> str:
    """A command to copy that does what the self-check does."""
    return f"curl {url}/v1/instruct -F 'audio=@{clip}' -F 'instruction={INSTRUCTION}'"


def _body(audio: bytes, boundary: str) -> bytes:
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="instruction"\r\n\r\n{INSTRUCTION}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="audio"; filename="clip"\r\n\r\n'
    )
    return head.encode() + audio + f"\r\n--{boundary}--\r\n".encode()


def _post(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    # Not urllib: it would go through a proxy that the environment names.
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/v1/instruct", body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
