"""Try to bring a model as a new user does, by the command line and the `openai` client alone, for docs/models.md.

    python -m tests.export.checkpoints.user_trial

Tiny random twins are pulled, listed, shown, served, asked and removed. Then a checkpoint is broken in ten ways, and pulled.
Prints two tables. The disk that is full is a small one in memory, for which Linux has to allow `unshare`.
"""

import argparse
import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import torch

from export.default_bundle import default_cache_dir
from export.markdown import table
from tests.support.broken_checkpoints import DAMAGES, hide_tokeniser, write_code_into_template
from tests.support.tiny.tiny_checkpoints import write_whisper
from tests.support.tiny.tiny_llms import write_llm
from tests.support.tiny.tiny_speech_llms import WRITERS

CLIP = Path(__file__).parents[3] / "server/assets/selfcheck.flac"
START_TIMEOUT_S, REPLY_TIMEOUT_S = 180.0, 120.0
BREAKS: dict[str, Callable[[Path], object]] = {
    "a missing shard": DAMAGES["a missing shard"][0],
    "weights in an unknown number format": DAMAGES["an unknown number format"][0],
    "another architecture": DAMAGES["another family"][0],
    "renamed tensors": DAMAGES["renamed tensors"][0],
    "a file cut short": DAMAGES["a file cut short"][0],
    "no tokeniser": hide_tokeniser,
    "a hostile pickle": DAMAGES["a pickle alone"][0],
    "a chat template with code": write_code_into_template,
    "a config that lies about a width": DAMAGES["a lie about the LLM"][0],
    "a config that says 1,000,000,000 layers": DAMAGES["a thousand million layers"][0],
}
FULL_DISK = 'mkdir -p "$0" && mount -t tmpfs -o size=1400k none "$0" && "$@"; status=$?; find "$0" -mindepth 1; exit $status'
"""A shell's line that runs a command while a folder, its first argument, is a disk of 1.4 MB, and lists what it left there."""


@dataclass(frozen=True)
class User:
    """A user with an empty cache, but for the voice detector's wheel."""

    home: Path

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    def command(self, *arguments: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "server",
            *arguments,
            *([] if arguments[0] == "serve" else ["--cache-dir", str(self.cache)]),
        ]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one command of `thinbridge`."""
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False)

    def left(self) -> list[str]:
        """Return what lies in the store, files on their way among them."""
        return sorted(path.name for path in (self.cache / "models").glob("*"))

    @contextmanager
    def serving(self, name: str) -> Iterator[str]:
        """Yield the address of a server of a model that is ready."""
        command = self.command("serve", "--port", "0", "--model", name)
        environment = {**os.environ, "THINBRIDGE_CACHE_DIR": str(self.cache)}
        log = self.home / f"{name}.log"
        with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as server:
            deadline_s = time.monotonic() + START_TIMEOUT_S
            while "\nReady. " not in log.read_text():
                if server.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError(log.read_text())
                time.sleep(0.2)
            found = re.search(r"http://[0-9.:]+", log.read_text())
            yield found.group() if found else ""
            server.send_signal(signal.SIGTERM)
            if server.wait(START_TIMEOUT_S):
                raise RuntimeError(log.read_text())


def ask(url: str, model: str) -> dict[str, str]:
    """Return what each kind of question gets through OpenAI's client: an answer's length, or the message of an error."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=REPLY_TIMEOUT_S)
    heard = base64.b64encode(CLIP.read_bytes()).decode()

    def chat(text: str) -> str:
        audio = {"type": "input_audio", "input_audio": {"data": heard, "format": "flac"}}
        turn: Any = {"role": "user", "content": [{"type": "text", "text": text}, audio]}
        reply = client.chat.completions.create(model=model, messages=[turn], max_tokens=20)
        return reply.choices[0].message.content or ""

    questions: dict[str, Callable[[], str]] = {
        "Transcript": lambda: client.audio.transcriptions.create(model=model, file=CLIP).text,
        "Chat: transcribe": lambda: chat("Transcribe the speech to text."),
        "Chat: a question": lambda: chat("Which language is spoken?"),
    }
    answers = {}
    for name, question in questions.items():
        try:
            answers[name] = "answered" if question() else "no text"
        except openai.BadRequestError as error:
            answers[name] = str(error).split(" - ", 1)[-1]
    return answers


def try_family(user: User, checkpoint: Path, *more: str) -> list[str]:
    """Return a row: from `pull` to `remove` of one checkpoint. Raises `RuntimeError` where a command fails."""
    started_s = time.monotonic()
    pulled = user.run("pull", str(checkpoint), *more)
    pull_s = time.monotonic() - started_s
    found = re.search(r"--model ([^`]+)`", pulled.stdout)
    if pulled.returncode or found is None:
        raise RuntimeError(pulled.stderr)
    name = found.group(1)
    listed, shown = user.run("models").stdout, user.run("show", name).stdout
    with user.serving(name) as url:
        answers = ask(url, name)
    removed = user.run("remove", name)
    is_told = name in listed and name in shown and removed.returncode == 0 and user.left() == []
    return [checkpoint.name, f"{pull_s:.0f} s", *answers.values(), "yes" if is_told else "**no**"]


def try_broken(user: User, whole: Path, damage: Callable[[Path], object], name: str) -> list[str]:
    """Return a row: how a checkpoint that is broken in one way is refused."""
    folder = user.home / "broken" / "checkpoint"
    shutil.copytree(whole, folder)
    damage(folder)
    started_s = time.monotonic()
    pulled = user.run("pull", str(folder))
    shutil.rmtree(folder.parent)
    return _refusal(user, name, pulled, time.monotonic() - started_s, user.left())


def try_full_disk(user: User, whole: Path) -> list[str]:
    """Return a row: how a pull ends whose disk is full on the way."""
    started_s = time.monotonic()
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, str(user.cache / "models")]
    pulled = subprocess.run([*command, *user.command("pull", str(whole))], capture_output=True, text=True, check=False)
    return _refusal(user, "no space on the disk", pulled, time.monotonic() - started_s, pulled.stdout.split())


def _refusal(user: User, name: str, pulled: subprocess.CompletedProcess[str], wall_s: float, left: Sequence[str]) -> list[str]:
    message = (pulled.stderr.strip().splitlines() or ["none"])[-1].removeprefix("thinbridge: ")
    message = message.replace(str(user.cache), "…")
    return [name, message, str(pulled.returncode), f"{wall_s:.0f} s", ", ".join(left) or "nothing"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--family", nargs="*", choices=["whisper", *WRITERS], default=["whisper", *WRITERS], help="by default all"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="thinbridge-user-") as home:
        user, twins = User(Path(home)), Path(home) / "twins"
        if (wheels := default_cache_dir() / "wheels").exists():
            shutil.copytree(wheels, user.cache / "wheels")
        write_whisper(twins / "whisper")
        llm = twins / "qwen3"
        write_llm(llm, "qwen3")
        rows = []
        for family in options.family:
            if family != "whisper":
                WRITERS[family](twins / family)
            rows.append(try_family(user, twins / family, *(["--llm", str(llm)] if family == "whisper" else [])))
            print(rows[-1], file=sys.stderr, flush=True)
        broken = []
        speech = twins / "granite-speech"
        if not speech.exists():
            WRITERS[speech.name](speech)
        for name, damage in BREAKS.items():
            broken.append(try_broken(user, speech, damage, name))
            print(broken[-1], file=sys.stderr, flush=True)
        broken.append(try_full_disk(user, speech))
        rows.append([*try_family(user, speech)])
    print(
        table(("Checkpoint", "Pulled in", "Transcript", "Chat: transcribe", "Chat: a question", "Listed, shown, removed"), rows)
    )
    print()
    print(table(("Broken", "Message", "Exit status", "After", "Left behind"), broken))
    return 0


if __name__ == "__main__":
    sys.exit(main())
