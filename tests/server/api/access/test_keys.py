"""Keys are read strictly, compared by their digests, and never shown."""

import hashlib
import hmac
from pathlib import Path

import pytest
from pydantic import SecretStr

from server.api.access.keys import KeyLimits, load_keys, split_subprotocols
from server.settings import Settings, SettingsError, load_settings

KEY = "k" * 16


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    ring = load_keys(Settings(api_keys=SecretStr(f"{KEY},b:{'b' * 16},{'c' * 16}")))
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert ring.find([KEY]) is not None
    first = len(compared)
    assert ring.find(["x"]) is None
    assert len(compared) == 2 * first == 8
    assert {len(digest) for pair in compared for digest in pair} == {32}


def test_a_file_has_names_digests_and_limits(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    digest = hashlib.sha256(b"secret-of-a-digest").hexdigest()
    file.write_text(
        f"\n# a comment\na:{KEY} requests_per_minute=5 concurrent_requests=2 # more\nsha256:{digest}\nb:sha256:{'0' * 64}\n"
    )
    ring = load_keys(Settings(api_keys_file=file, key_audio_s_per_minute=60))
    first, second = ring.find([KEY]), ring.find(["secret-of-a-digest"])
    assert first is not None
    assert second is not None
    assert (first.name, first.limits) == ("a", KeyLimits(5, 2, 60))
    assert (second.name, second.limits) == (f"key-{digest[:8]}", KeyLimits(None, None, 60))
    assert ring.find([digest]) is None


@pytest.mark.parametrize(
    "text",
    ["short", f"{KEY},", f"{KEY},{KEY}", f"{KEY} ä", f"a b:{KEY}", "sha256:12", f"{KEY} x=1", f"{KEY} requests_per_minute=0"],
)
def test_what_is_no_key_is_refused_and_not_quoted(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_keys(Settings(api_keys=SecretStr(text)))
    assert KEY not in str(refused.value)
    if "," not in text:
        file = tmp_path / "keys"
        file.write_text(text)
        with pytest.raises(SettingsError, match="Line 1"):
            load_keys(Settings(api_keys_file=file))


def test_a_file_without_keys_or_without_rights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    for name in ("empty", "missing"):
        with pytest.raises(SettingsError, match="api_keys_file"):
            load_keys(Settings(api_keys_file=tmp_path / name))


def test_settings_do_not_show_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINBRIDGE_API_KEYS", KEY)
    settings = load_settings(host="0.0.0.0")
    assert KEY not in repr(settings)
    assert not load_keys(settings).is_open
    assert load_keys(Settings(api_keys=None)).is_open


@pytest.mark.parametrize(
    ("offered", "names", "found"),
    [
        ([], [], []),
        (["realtime", "openai-insecure-api-key.a"], ["realtime"], ["a"]),
        (["token", "a"], ["token"], ["a"]),
        (["token"], ["token"], []),
        (["a", "b"], ["a", "b"], []),
    ],
)
def test_keys_among_subprotocols(offered: list[str], names: list[str], found: list[str]) -> None:
    assert split_subprotocols(offered) == (names, found)
