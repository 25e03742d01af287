"""Screenshots of the page for the docs: `python -m tests.support.clients.screenshots http://127.0.0.1:8000` writes them.

The server at the address runs real models; Chromium has to be installed.
"""

import base64
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from tests.support.clients.chromium import ChromiumPage, chromium
from tests.support.clients.live_server import audio_file

ROOT = Path(__file__).parents[3]
CLIPS = ROOT / "tests" / "clips"
CLIP = CLIPS / "ljspeech-LJ001-0016.flac"
SPOKEN = ("librispeech-533-1066-0006.flac", CLIP.name)
RATE_HZ = 16_000
WIDTH = 880
LONG_TIMEOUT_S = 120.0


def show_answer(page: ChromiumPage, url: str) -> None:
    """Drop a file, let it be transcribed and stop the player within a word."""
    page.prefer("light")
    page.open(url)
    page.wait_for("document.querySelector('#state').innerText === 'Ready'", LONG_TIMEOUT_S)
    sound = base64.b64encode(CLIP.read_bytes()).decode()
    page.run(f"addFiles([new File([Uint8Array.from(atob('{sound}'), (each) => each.charCodeAt(0))], 'lecture.flac')])")
    page.click("#send")
    page.wait_for("!document.querySelector('#times').hidden && document.querySelector('#progress').hidden", LONG_TIMEOUT_S)
    # The first request of a server is slower than those behind it.
    page.click("#send")
    page.wait_for("!document.querySelector('#times').hidden && document.querySelector('#progress').hidden", LONG_TIMEOUT_S)
    page.run("$('player').currentTime = spans[Math.floor(spans.length / 2)].start_s + 0.02")
    page.wait_for("document.querySelector('#text .now') !== null")


def show_live(page: ChromiumPage, url: str) -> None:
    """Speak until the first utterance is answered."""
    page.prefer("dark")
    page.open(url)
    page.wait_for("document.querySelector('#state').innerText === 'Ready'", LONG_TIMEOUT_S)
    page.click("#speak")
    page.wait_for("document.querySelector('#said').innerText !== ''", LONG_TIMEOUT_S)


def save(page: ChromiumPage, path: Path) -> None:
    """Write the whole page, however long."""
    page.run("document.activeElement.blur()")
    page.resize(WIDTH, int(page.run("document.querySelector('main').getBoundingClientRect().bottom + scrollY")) - 40)
    time.sleep(0.5)  # until colours have changed
    page.screenshot(path)


def write_microphone(path: Path) -> None:
    """Write what is spoken: the clips, each with a pause behind it."""
    pieces: list[npt.NDArray[np.float32]] = []
    for name in SPOKEN:
        samples, rate_hz = soundfile.read(CLIPS / name, dtype="float32")
        pieces += [soxr.resample(samples, rate_hz, RATE_HZ), np.zeros(2 * RATE_HZ, np.float32)]
    path.write_bytes(audio_file(np.concatenate(pieces), RATE_HZ, "WAV", "PCM_16"))


def main(url: str) -> None:
    """Write `docs/page.png` and `docs/page_live.png`."""
    with tempfile.TemporaryDirectory() as folder:
        microphone = Path(folder) / "microphone.wav"
        write_microphone(microphone)
        with chromium(Path(folder) / "profile", microphone) as page:
            show_answer(page, url)
            save(page, ROOT / "docs" / "page.png")
            show_live(page, url)
            save(page, ROOT / "docs" / "page_live.png")


if __name__ == "__main__":
    main(sys.argv[1])
