"""`pull`, `models`, `show` and `remove`, on a tiny checkpoint and a hub on this machine."""

from functools import partial
from pathlib import Path

import pytest

from export.bundle_parts import VOICE_WINDOW_SAMPLES
from server import cli, model_commands
from server.settings import load_settings
from tests.models.test_voice_onnx import write_graph
from tests.support.tiny.tiny_checkpoints import write_whisper


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    write_voice = partial(write_graph, window_samples=VOICE_WINDOW_SAMPLES)
    monkeypatch.setattr(model_commands, "_write_voice", lambda _settings, path: write_voice(path))
    return str(tmp_path / "cache")


def test_a_model_is_pulled_listed_shown_served_by_name_and_removed(
    cache: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_whisper(tmp_path / "Tiny_Whisper")
    assert cli.main(["pull", str(tmp_path / "Tiny_Whisper"), "--cache-dir", cache, "--precision", "fp32"]) == 0
    assert "Serve it with `thinbridge serve --model tiny_whisper-fp32`." in capsys.readouterr().out
    assert cli.main(["models", "--cache-dir", cache]) == 0
    assert capsys.readouterr().out.startswith("tiny_whisper-fp32 ")
    assert cli.main(["show", "tiny_whisper-fp32", "--cache-dir", cache]) == 0
    shown = capsys.readouterr().out
    for part in ("every sha256 right", "MB a slot", "3 languages", "none: it transcribes and translates", "licence", "exact"):
        assert part in shown
    options = cli._parser().parse_args(["serve", "--model", "tiny_whisper-fp32", "--cache-dir", cache])
    settings = load_settings(bundle=options.models[0], cache_dir=options.cache_dir)
    assert cli.get_bundle(settings) == Path(cache) / "models" / "tiny_whisper-fp32"
    assert cli.main(["remove", "tiny_whisper-fp32", "--cache-dir", cache]) == 0
    assert not list((Path(cache) / "models").iterdir())


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["remove", "none"], "There is no model 'none': no model has been pulled."),
        (["serve", "--port", "0", "--model", "none"], "There is no model 'none': no model has been pulled."),
        (["pull", "nowhere"], "is neither a folder, nor a GGUF or .nemo file, nor a hub id"),
    ],
)
def test_a_wrong_name_is_one_sentence(command: list[str], expected: str, cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, "--cache-dir", cache]) == 2
    assert expected in capsys.readouterr().err
