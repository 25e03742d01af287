"""The command line, with a scripted engine in place of the models."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from models.protocols import BackendError
from server import cli
from server.api.lifecycle import CHECK_CLIP, curl_line
from server.api.options import DEFAULT_INSTRUCTION
from server.engine.types.protocol import Engine
from server.errors import EngineFailed
from server.settings import Settings, load_settings
from tests.support.clients.live_server import audio_file, tone
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.inputs.recorded import recording, transcript

ROOT = Path(__file__).parents[2]
GPUS_ON_A_CPU = "The gpus setting is about GPUs: it needs the device cuda (THINBRIDGE_DEVICE=cuda).\n"
PROGRAM = """
import sys
from pathlib import Path
from models.protocols import BackendError
from server import cli
from tests.support.fakes.fake_engine import FakeEngine

engine = FakeEngine()
if "--broken" in sys.argv:
    sys.argv.remove("--broken")
    engine.start_error = RuntimeError("the models are broken")
if "--refused" in sys.argv:
    sys.argv.remove("--refused")
    engine.start_error = BackendError("There is no such GPU.")
cli.get_bundle = lambda settings: Path("the-bundle")
cli.load_engine = lambda folder, settings: engine
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Replace the models of every command by a scripted engine."""
    fake = FakeEngine()
    monkeypatch.setattr(cli, "get_bundle", lambda _settings: Path("the-bundle"))
    monkeypatch.setattr(cli, "load_engine", lambda _folder, _settings: fake)
    return fake


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.flac"
    path.write_bytes(audio_file(tone(1.0, 16_000), 16_000, "FLAC"))
    return path


@contextlib.contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Return standard output up to the line that matches."""
    text = ""
    for line in process.stdout or ():
        text += line
        if re.search(pattern, line):
            return text
    raise AssertionError(f"{pattern!r} not found in {text!r}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_checks_itself_says_where_it_is_and_stops_cleanly(number: signal.Signals) -> None:
    with program("serve", "--port", "0") as process:
        text = read_until(process, "Ctrl-C")
        assert re.search(r"Self-check: \d+\.\d s of speech answered in \d+ ms: 'hello world'", text)
        url = re.search(r"Thinbridge \S+ at (http://127\.0\.0\.1:\d+)", text)
        assert url is not None
        assert curl_line(url[1], needs_key=False) in text
        assert httpx.get(f"{url[1]}/ready", trust_env=False, timeout=20).status_code == 200
        process.send_signal(number)
        assert process.wait(20) == 0


def test_serve_with_keys_lets_itself_in(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k" * 32)
    with program("serve", "--port", "0", "--api-keys-file", str(tmp_path / "keys")) as process:
        text = read_until(process, "Ctrl-C")
    assert "Self-check: " in text
    assert "Authorization: Bearer KEY" in text


@pytest.mark.parametrize(("text", "problem"), [("short", "Line 1"), ("", "holds no key")])
def test_serve_says_what_is_wrong_with_its_keys(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "keys").write_text(text)
    with program("serve", "--port", "0", "--api-keys-file", str(tmp_path / "keys")) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert problem in error
    assert "Traceback" not in error


def test_serve_ends_where_the_engine_cannot_start() -> None:
    with program("serve", "--port", "0", "--broken") as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "the models are broken" in errors
        assert "Traceback" in errors


def test_what_an_operator_can_do_something_about_is_one_sentence() -> None:
    with program("serve", "--port", "0", "--refused") as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "The model fake-model could not be loaded: There is no such GPU.\n" in errors
        assert "Traceback" not in errors


def test_transcribe_says_in_a_sentence_why_it_cannot_start(
    engine: FakeEngine, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.start_error = BackendError("There is no such GPU.")
    assert cli.main(["transcribe", "--device", "cuda", str(clip)]) == 2
    assert capsys.readouterr().err == "thinbridge: There is no such GPU.\n"


def test_flags_name_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Settings] = []

    def load_engine(_folder: Path, settings: Settings) -> Engine:
        seen.append(settings)
        raise BackendError("There is no such GPU.")

    monkeypatch.setattr(cli, "load_engine", load_engine)
    flags = ["--device", "cuda", "--gpus", "2,3", "--encoder-runtime", "tensorrt", "--adapter-runtime", "tensorrt"]
    flags += ["--tensorrt-library", "tensorrt_rtx"]
    assert cli.main(["serve", "--port", "0", "--bundle", str(tmp_path), *flags]) == 2
    monkeypatch.setenv("THINBRIDGE_GPUS", "5,6")
    assert cli.main(["transcribe", "--bundle", str(tmp_path), "--device", "cuda", "a.wav"]) == 2
    served, transcribed = seen
    assert (served.device, served.gpu_numbers) == ("cuda", (2, 3))
    assert (served.encoder_runtime, served.adapter_runtime, served.tensorrt_library) == ("tensorrt", "tensorrt", "tensorrt_rtx")
    # `transcribe` runs the engine in a thread, which has one GPU.
    assert (transcribed.engine, transcribed.gpu_numbers) == ("thread", (5,))
    assert cli.main(["serve", "--gpus", "1"]) == 2
    assert capsys.readouterr().err.endswith("thinbridge: " + GPUS_ON_A_CPU)


def test_the_default_bundle_for_a_gpu_is_one_that_plans_are_built_from(tmp_path: Path) -> None:
    folders = {cli.find_bundle(load_settings(cache_dir=tmp_path, device=device)) for device in ("cpu", "cuda")}
    assert sorted(folder.name.split("-")[-2] for folder in folders) == ["fp32", "int8"]


def test_a_bundle_is_the_name_of_a_recipe_or_a_folder(tmp_path: Path) -> None:
    found = [
        cli.find_bundle(load_settings(cache_dir=tmp_path, bundle=name)) for name in ("small", "base", "large", "slm", "elsewhere")
    ]
    assert found[1] == cli.find_bundle(load_settings(cache_dir=tmp_path))
    assert [folder.parent for folder in found] == [tmp_path] * 4 + [Path()]
    assert len(set(found)) == 5


def test_a_model_that_is_given_again_is_a_further_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    def serve(_options: object, settings: Settings) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(cli, "serve_command", serve)
    monkeypatch.setenv("THINBRIDGE_OTHER_MODELS", "c,d,c")
    assert cli.main(["serve"]) == cli.main(["serve", "--model", "a"]) == cli.main(["serve", "--model", "a", "--bundle", "b"]) == 0
    assert [cli.asked_models(settings) for settings in seen] == [[None, "c", "d"], ["a", "c", "d"], ["a", "b"]]


def test_models_to_load_later_are_those_that_are_there(tmp_path: Path) -> None:
    settings = load_settings(cache_dir=tmp_path)
    for name in ("base", "elsewhere", "../etc", str(tmp_path)):
        with pytest.raises(LookupError):
            cli.find_model(name, settings)


def test_serve_says_that_a_port_is_taken(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"Cannot listen on 127.0.0.1 port {port}" in error
    assert "--port" in error
    assert not engine.submitted


def test_serve_refuses_a_public_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--host", "0.0.0.0"]) == 2
    assert "--insecure" in capsys.readouterr().err


def test_a_misspelt_variable_stops_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("THINBRIDGE_PROT", "1")
    assert cli.main(["version"]) == 2
    assert "THINBRIDGE_PORT" in capsys.readouterr().err


def test_transcribe_prints_the_text(engine: FakeEngine, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", str(clip), "-i", "Say it.", "--max-tokens", "9"]) == 0
    assert capsys.readouterr().out == "hello world\n"
    (request,) = engine.submitted
    assert (request.task.instruction, request.task.sampling.max_tokens, len(request.audio)) == ("Say it.", 9, 16_000)
    assert engine.drained


def test_transcribe_goes_on_after_a_bad_file(
    engine: FakeEngine, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    assert cli.main(["transcribe", str(broken), str(tmp_path / "absent.wav"), str(clip)]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{clip}: hello world\n"
    assert len(captured.err.splitlines()) == 2
    assert len(engine.submitted) == 1


@pytest.mark.usefixtures("engine")
def test_transcribe_writes_json_lines(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", "--format", "json", str(clip), str(clip)]) == 0
    replies = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(reply["file"], reply["text"], reply["audio_s"]) for reply in replies] == [(str(clip), "hello world", 1.0)] * 2
    assert replies[0]["times_ms"]["total_ms"] > 0


def test_transcribe_writes_subtitles(engine: FakeEngine, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", "--format", "srt", str(clip)]) == 0
    assert capsys.readouterr().out == "1\n00:00:00,000 --> 00:00:01,000\nhello world\n\n"
    assert engine.submitted[0].task.word_times == "if_known"


@pytest.mark.usefixtures("engine")
def test_transcribe_cuts_long_files_at_their_pauses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long, damaged = tmp_path / "long.flac", tmp_path / "damaged.flac"
    long.write_bytes(recording(45))
    damaged.write_bytes(long.read_bytes()[:100])
    assert cli.main(["transcribe", str(damaged), str(long)]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{long}: {transcript(45, DEFAULT_INSTRUCTION)}\n"
    assert captured.err == f"{damaged}: The FLAC file is damaged or cut off; nothing in it can be decoded.\n"


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("format", ["json", "srt"])
def test_transcribe_asks_about_all_of_a_long_file(format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = tmp_path / "long.flac"
    long.write_bytes(recording(45))
    status = cli.main(["transcribe", "--format", format, str(long), "-i", "Summarise it."])
    captured = capsys.readouterr()
    if format == "json":
        reply = json.loads(captured.out)
        assert (status, reply["text"], reply["basis"], reply["audio_s"]) == (0, "about all", "transcript", 45.0)
    else:
        assert (status, captured.out) == (1, "")
        assert "transcription only" in captured.err


def test_transcribe_reports_what_the_engine_says(engine: FakeEngine, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine.failure = EngineFailed("The engine failed.")
    assert cli.main(["transcribe", str(clip)]) == 1
    assert "The engine failed." in capsys.readouterr().err


def test_show_and_doctor_say_that_there_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = str(tmp_path / "nothing")
    assert cli.main(["show", absent]) == 2
    assert "no bundle" in capsys.readouterr().err
    assert cli.main(["doctor", "--bundle", absent]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if not line.startswith("ok   GPU: ")]) == 6
    assert [line for line in lines if line.startswith("FAIL bundle")]
    assert [line for line in lines if line.startswith("ok   audio decoder")]


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.startswith("thinbridge ")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(
        command in text for command in ("serve", "transcribe", "mic", "pull", "models", "show", "remove", "doctor", "version")
    )


def test_python_m_server_is_the_same_program() -> None:
    result = subprocess.run([sys.executable, "-m", "server", "version"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert result.stdout == f"thinbridge {cli.version()}\n"


def test_the_clip_of_the_self_check_is_committed_and_short() -> None:
    assert 0 < CHECK_CLIP.stat().st_size < 200_000


def test_the_doctor_looks_at_every_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    assert cli.main(["doctor", "--model", one, "--model", other]) == 1
    text = capsys.readouterr().out
    assert f"bundle of {one}: {one} does not exist" in text
    assert f"bundle of {other}: {other} does not exist" in text
    assert "0 of 2 models are built" in text


def test_the_doctor_sees_a_machine_without_the_models_runtime() -> None:
    block = "import sys; sys.modules['onnxruntime'] = None"
    command = f"{block}; from server.doctor.checks import check_onnxruntime; print(check_onnxruntime().line())"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("FAIL onnxruntime: cannot be imported"), done.stderr
