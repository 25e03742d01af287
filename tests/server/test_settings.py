"""Settings come from flags and the environment, and nothing unknown or unsafe passes."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import REMOVED_SETTINGS, Settings, SettingsError, load_settings


def test_a_flag_beats_the_environment_which_beats_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINBRIDGE_PORT", "9001")
    monkeypatch.setenv("THINBRIDGE_SLOTS", "7")
    settings = load_settings(port=9002, host=None)
    assert (settings.port, settings.slots, settings.host) == (9002, 7, "127.0.0.1")


def test_a_gpu_takes_more_at_once_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu, on_gpu = load_settings(), load_settings(device="cuda")
    assert (on_cpu.slots, on_cpu.queue_limit) == (4, 16)
    assert (on_gpu.slots, on_gpu.queue_limit) == (32, 128)
    assert Settings.model_validate_json(on_gpu.model_dump_json()) == on_gpu
    monkeypatch.setenv("THINBRIDGE_SLOTS", "7")
    monkeypatch.setenv("THINBRIDGE_DEVICE", "cuda")
    assert (load_settings().slots, load_settings(slots=5).slots, load_settings(device="cpu", slots=6).slots) == (7, 5, 6)


def test_an_unknown_variable_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINBRIDGE_QUEUE_LIMITS", "3")
    with pytest.raises(SettingsError, match=r"THINBRIDGE_QUEUE_LIMITS .* nearest is THINBRIDGE_QUEUE_LIMIT\."):
        load_settings()


@pytest.mark.parametrize("name", sorted(REMOVED_SETTINGS))
def test_a_setting_of_an_older_version_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"THINBRIDGE_{name.upper()}", "0.1")
    with pytest.raises(SettingsError, match=r"a setting of an older version: .* leave the setting out"):
        load_settings()
    assert name not in Settings.model_fields


def test_an_unknown_flag_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match=r"'prot' .* nearest is 'port'"):
        load_settings(prot=1)


def test_a_bad_value_names_its_setting() -> None:
    with pytest.raises(SettingsError, match="'port'"):
        load_settings(port="many")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_a_public_address_needs_insecure(host: str) -> None:
    with pytest.raises(SettingsError):
        load_settings(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    assert load_settings(host=host).host == host


def test_insecure_allows_a_public_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINBRIDGE_INSECURE", "true")
    assert load_settings(host="0.0.0.0").host == "0.0.0.0"


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.port = 1


def test_the_cache_folder_follows_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_settings().cache_dir == tmp_path / "thinbridge"


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SettingsError, match="default_max_tokens"):
        load_settings(default_max_tokens=100, max_tokens_limit=10)


@pytest.mark.parametrize(("gpus", "numbers"), [("0", (0,)), ("2", (2,)), ("0,1,3", (0, 1, 3)), ("12,7", (12, 7))])
def test_gpus_are_numbers(monkeypatch: pytest.MonkeyPatch, gpus: str, numbers: tuple[int, ...]) -> None:
    monkeypatch.setenv("THINBRIDGE_GPUS", gpus)
    assert load_settings(device="cuda").gpu_numbers == numbers


@pytest.mark.parametrize("gpus", ["", "all", "0,", ",1", "0 1", "-1", "0,1,0", "1,01", "1000"])
def test_anything_else_is_no_list_of_gpus(gpus: str) -> None:
    with pytest.raises(SettingsError, match="gpus"):
        load_settings(device="cuda", gpus=gpus)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpus", "0,1"),
        ("gpus", "1"),
        ("encoder_runtime", "tensorrt"),
        ("adapter_runtime", "tensorrt"),
        ("tensorrt_library", "tensorrt_rtx"),
    ],
)
def test_settings_for_gpus_are_refused_on_a_cpu(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"The {name} setting .* device cuda"):
        load_settings(**{name: value})
    assert getattr(load_settings(device="cuda", **{name: value}), name) == value


def test_a_thread_has_one_gpu() -> None:
    with pytest.raises(SettingsError, match="engine process"):
        load_settings(device="cuda", engine="thread", gpus="0,1")
    assert load_settings(device="cuda", engine="thread", gpus="1").gpu_numbers == (1,)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name: str) -> None:
    assert str(Settings.model_fields[name].description).endswith(".")
