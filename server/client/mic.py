"""`thinbridge mic`: audio into a running server at real-time pace, and the events that come back on the screen.

Two threads share the connection: one sends, paced by the clock of the audio, the caller's thread receives. Latencies count from
the speech in the audio that was sent, found by its loudness, and not from the times that the server reports.
"""

import contextlib
import json
import select
import shutil
import signal
import statistics
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import Any, TextIO
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from server.audio.decode import decode_audio
from server.audio.types import AudioLimits

PIECE_S = 0.04
SAMPLE_BYTES = 2
RATE_HZ = 16_000
MAX_FILE_S = 12 * 3600.0
LIVE_LEAD_S = 0.5
# The first bytes of audio files, which raw samples do not happen to begin with: WAV, FLAC, Ogg, MP3 with a tag.
FILE_MAGIC = (b"RIFF", b"fLaC", b"OggS", b"ID3")
LEVEL_S = 0.01
# Audio this much softer (30 dB) than the loudest part of an utterance is not speech.
SPEECH_SHARE = 0.03
MAX_EVENT_BYTES = 2**24
CLOSE_TIMEOUT_S = 2.0
DIM, PLAIN, REWRITE = "\x1b[2m", "\x1b[22m", "\r\x1b[K"


class MicError(RuntimeError):
    """There is no session; the message is for the operator."""


@dataclass(frozen=True)
class Source:
    """Mono 16-bit PCM in pieces of `PIECE_S`; an iterator over live audio blocks until the next piece is spoken.

    `lead_s` is how far ahead of its own clock the audio may be sent: a microphone's samples come in bursts.
    """

    rate_hz: int
    pieces: Iterator[bytes]
    lead_s: float = 0.0


def open_source(path: str, rate_hz: int | None) -> Source:
    """Return the audio of a file, or of stdin if the path is `-`.

    With `rate_hz` the audio is raw mono 16-bit PCM. Without it a path is an audio file; stdin is one if it begins like one,
    and raw at 16 kHz otherwise. Raises `ServeError` for a file that cannot be decoded, `OSError` for one that cannot be read.
    """
    if path != "-":
        data = Path(path).read_bytes()
        return _decode_source(data) if rate_hz is None else Source(rate_hz, _cut_pieces(data, rate_hz))
    # Unbuffered: a thread that waits while it holds a buffer's lock would hold up the end of the program.
    stdin = FileIO(0, closefd=False)
    head = _read_bytes(stdin, 4)
    if rate_hz is None and head.startswith(FILE_MAGIC):
        return _decode_source(head + stdin.readall())
    return Source(rate_hz or RATE_HZ, _read_pieces(stdin, head, rate_hz or RATE_HZ), LIVE_LEAD_S)


def _decode_source(data: bytes) -> Source:
    samples = decode_audio(data, AudioLimits(RATE_HZ, 0.0, MAX_FILE_S))
    return Source(RATE_HZ, _cut_pieces((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes(), RATE_HZ))


def _cut_pieces(pcm: bytes, rate_hz: int) -> Iterator[bytes]:
    size = _piece_bytes(rate_hz)
    whole = _whole_samples(pcm)
    return (whole[start : start + size] for start in range(0, len(whole), size))


def _read_pieces(file: FileIO, head: bytes, rate_hz: int) -> Iterator[bytes]:
    size = _piece_bytes(rate_hz)
    while piece := _whole_samples(head + _read_bytes(file, size - len(head))):
        head = b""
        yield piece


def _whole_samples(pcm: bytes) -> bytes:
    """Drop half a sample, which can only be at the very end."""
    return pcm[: len(pcm) // SAMPLE_BYTES * SAMPLE_BYTES]


def _piece_bytes(rate_hz: int) -> int:
    return SAMPLE_BYTES * round(PIECE_S * rate_hz)


def _read_bytes(file: FileIO, size: int) -> bytes:
    """Read `size` bytes, or fewer at the end of the file."""
    data = b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


class SentAudio:
    """The audio that has been sent: its loudness, and when each piece was sent."""

    def __init__(self, rate_hz: int, speed: float) -> None:
        self._rate_hz, self._speed = rate_hz, speed
        self._levels, self._moments_s = array("f"), array("d")
        self._samples = 0

    @property
    def seconds(self) -> float:
        return self._samples / self._rate_hz

    def add_piece(self, piece: bytes, moment_s: float) -> None:
        """Note a piece that is sent at a moment of the monotonic clock."""
        samples = np.frombuffer(piece, "<i2").astype(np.float32)
        parts = np.array_split(samples, round(PIECE_S / LEVEL_S))
        self._levels.extend(float(np.sqrt(np.mean(part**2))) if len(part) else 0.0 for part in parts)
        self._moments_s.append(moment_s)
        self._samples += len(samples)

    def speech_within(self, start_s: float, end_s: float) -> tuple[float, float]:
        """Return the onset and the end of the loud part of a stretch of the audio, in seconds of the audio."""
        first = round(start_s / LEVEL_S)
        levels = self._levels[first : round(end_s / LEVEL_S)]
        threshold = SPEECH_SHARE * max(levels, default=0.0)
        loud = [place for place, level in enumerate(levels, first) if level >= threshold]
        return (loud[0] * LEVEL_S, (loud[-1] + 1) * LEVEL_S) if loud else (start_s, end_s)

    def spoken_at_s(self, audio_s: float) -> float:
        """Return when a moment of the audio was spoken, by the monotonic clock: its piece is sent when the piece is complete."""
        piece = min(int(audio_s / PIECE_S), len(self._moments_s) - 1)
        left_s = max(0.0, (piece + 1) * PIECE_S - audio_s)
        return self._moments_s[piece] - (left_s / self._speed if self._speed else 0.0)


@dataclass(frozen=True)
class Waits:
    """Seconds that a speaker waited: from the end of the speech to the answer, and from its onset to the first text."""

    final_s: float
    first_text_s: float | None


@dataclass
class Summary:
    """The outcome of a session: `failures` are messages of errors; `ended` says whether everything was answered."""

    audio_s: float = 0.0
    waits: list[Waits] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    ended: bool = False

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report for the operator."""
        count = len(self.waits)
        yield f"{count} utterance{'' if count == 1 else 's'} in {self.audio_s:.1f} s of audio"
        waited = {
            "end of speech to answer": [waits.final_s for waits in self.waits],
            "onset of speech to first text": [waits.first_text_s for waits in self.waits if waits.first_text_s is not None],
        }
        for name, seconds in waited.items():
            if seconds:
                yield f"{name}: median {1000 * statistics.median(seconds):.0f} ms, longest {1000 * max(seconds):.0f} ms"


# Shows an event, with the seconds since the session's start; answers come with the speaker's waits.
ShowEvent = Callable[[Mapping[str, Any], float, Waits | None], None]


def json_view(out: TextIO) -> ShowEvent:
    """Return a view that prints every event as JSON, with the second of its arrival in front."""

    def show(event: Mapping[str, Any], received_s: float, _waits: Waits | None) -> None:
        print(json.dumps({"received_s": round(received_s, 3), **event}, ensure_ascii=False), file=out, flush=True)

    return show


def text_view(out: TextIO, *, is_terminal: bool) -> ShowEvent:
    """Return a view with one line per answer; on a terminal also the text so far: stable text plain, the rest dim."""

    def show(event: Mapping[str, Any], _received_s: float, waits: Waits | None) -> None:
        if event["type"] == "partial" and is_terminal:
            line = REWRITE + fit_line(event["stable"], event["tail"], shutil.get_terminal_size().columns - 1)
            print(line, end="", file=out, flush=True)
        elif event["type"] == "final" and waits is not None:
            first_text = "" if waits.first_text_s is None else f", first text after {1000 * waits.first_text_s:.0f}"
            note = f"[answer after {1000 * waits.final_s:.0f} ms{first_text}]"
            text = event["text"] or f"({event['finish_reason']})"
            line = f"{event['start_s']:7.2f} s  {text}  {f'{DIM}{note}{PLAIN}' if is_terminal else note}"
            print(f"{REWRITE if is_terminal else ''}{line}", file=out, flush=True)

    return show


def fit_line(stable: str, tail: str, columns: int) -> str:
    """Return the end of the text in one line of at most `columns`, its tail dim, without control characters."""
    stable, tail = (("".join(letter for letter in text if letter.isprintable())) for text in (stable, tail))
    if len(stable) + len(tail) > columns:
        stable = "…" + stable[max(0, len(stable) + len(tail) - columns + 1) :]
        tail = tail[: columns - len(stable)]
    return f"{stable}{DIM}{tail}{PLAIN}"


def open_connection(url: str, key: str | None = None) -> ClientConnection:
    """Return a connection to `/v1/stream` of the server at `url`, with nothing sent yet. Raises `MicError`.

    `key` is the API key, for a server that needs one.
    """
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    address = parts._replace(scheme=scheme, path=parts.path.rstrip("/") + "/v1/stream").geturl()
    try:
        # No pings: behind minutes of audio that the server has not read yet they would seem unanswered.
        return connect(
            address,
            compression=None,
            proxy=None,
            max_size=MAX_EVENT_BYTES,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=None,
            additional_headers={} if key is None else {"Authorization": f"Bearer {key}"},
        )
    except InvalidStatus as error:
        raise MicError(_refusal(error.response.status_code, bytes(error.response.body or b""))) from None
    except (InvalidURI, InvalidHandshake, OSError) as error:
        raise MicError(f"No server answers at {url} ({error}); `thinbridge serve` starts one, --url names another.") from None


def _refusal(status: int, body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server has no live audio: it answered {status}."


@contextlib.contextmanager
def _on_first_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """Run `action` beside the block at the first Ctrl-C, which interrupts nothing: an event could be lost half shown.

    The next Ctrl-C is a `KeyboardInterrupt`, even if the shell made the process ignore them, as in the background.
    """

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=action, daemon=True).start()

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class MicSession:
    """One session on a connection. A speed of 0 sends as fast as the server reads."""

    def __init__(self, connection: ClientConnection, source: Source, speed: float, show_event: ShowEvent) -> None:
        self._connection, self._source, self._speed, self._show_event = connection, source, speed, show_event
        self._sent = SentAudio(source.rate_hz, speed)
        self._summary = Summary()
        self._first_texts_s: dict[int, float] = {}
        self._origin_s = time.monotonic()
        self._sending = threading.Lock()
        self._sent_all = False

    def run(self, start: Mapping[str, Any]) -> Summary:
        """Play the source to its end, or until Ctrl-C, and return once the server has answered everything.

        `start` holds the fields of the first message besides the rate. A second Ctrl-C is a `KeyboardInterrupt`. Runs on the main
        thread, which signals go to.
        """
        self._connection.send(json.dumps({"type": "start", "sample_rate_hz": self._source.rate_hz, **start}))
        sender = threading.Thread(target=self._send_audio, daemon=True)
        try:
            self._handle_event(self._connection.recv())
            self._origin_s = time.monotonic()
            sender.start()
            with _on_first_interrupt(self._send_end):
                while True:
                    self._handle_event(self._connection.recv())
        except ConnectionClosed as closed:
            if not self._summary.ended and not self._summary.failures:
                self._summary.failures.append(f"The server closed the session: {closed}.")
        self._summary.audio_s = self._sent.seconds
        return self._summary

    def _send_audio(self) -> None:
        clock_s = 0.0
        with contextlib.suppress(ConnectionClosed):
            for piece in self._source.pieces:
                clock_s += len(piece) / (SAMPLE_BYTES * self._source.rate_hz)
                if self._speed:
                    time.sleep(max(0.0, self._origin_s + (clock_s - self._source.lead_s) / self._speed - time.monotonic()))
                self._wait_for_room()
                with self._sending:
                    if self._sent_all:
                        return
                    self._sent.add_piece(piece, time.monotonic())
                    self._connection.send(piece)
            self._send_end()

    def _wait_for_room(self) -> None:
        # A `send` that waits for the server holds a lock that the receiver needs. A closed socket is the receiver's to report.
        with contextlib.suppress(ValueError, OSError):
            select.select([], [self._connection.socket], [])

    def _send_end(self) -> None:
        with self._sending, contextlib.suppress(ConnectionClosed):
            if not self._sent_all:
                self._sent_all = True
                self._connection.send(json.dumps({"type": "end"}))

    def _handle_event(self, message: str | bytes) -> None:
        now_s = time.monotonic()
        event = json.loads(message)
        waits = None
        match event["type"]:
            case "partial" if (event["stable"] + event["tail"]).strip():
                self._first_texts_s.setdefault(event["utterance"], now_s)
            case "final":
                waits = self._measure_waits(event, now_s)
                self._summary.waits.append(waits)
            case "error":
                self._summary.failures.append(event["error"]["message"])
            case "ended":
                self._summary.ended = True
        self._show_event(event, now_s - self._origin_s, waits)

    def _measure_waits(self, event: Mapping[str, Any], now_s: float) -> Waits:
        onset_s, end_s = self._sent.speech_within(event["start_s"], event["end_s"])
        first_text_s = self._first_texts_s.pop(event["utterance"], None)
        if first_text_s is not None:
            first_text_s -= self._sent.spoken_at_s(onset_s)
        return Waits(now_s - self._sent.spoken_at_s(end_s), first_text_s)
