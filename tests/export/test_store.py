"""The store keeps one bundle a name, whole or not at all."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from export.store import Store, StoreError, model_name


def add(store: Store, name: str, content: str = "{}") -> None:
    with store.new(name) as folder:
        (folder / "bundle.json").write_text(content)


def test_models_are_added_replaced_and_removed(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    add(store, "b")
    add(store, "a", "first")
    add(store, "a", "second")
    assert store.names() == ["a", "b"]
    assert (store.require("a") / "bundle.json").read_text() == "second"
    assert store.remove("a") == len("second")
    assert store.names() == ["b"]
    assert [path.name for path in store.root.iterdir()] == ["b"]


def test_a_model_that_fails_on_the_way_leaves_the_old_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, "a", "old")
    with pytest.raises(UnicodeEncodeError), store.new("a") as folder:
        (folder / "bundle.json").write_text("new \ud800", encoding="utf-8")
    assert (store.require("a") / "bundle.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


PULL = """
import sys
from pathlib import Path
from export.store import Store
with Store(Path(sys.argv[1])).new("half") as folder:
    (folder / "encoder.onnx").write_text("half")
    print(flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_pull_left_is_deleted_by_the_next_one_and_a_running_pull_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    command = [sys.executable, "-c", PULL, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as pull:
        assert pull.stdout
        assert pull.stdout.readline()
        add(store, "a")
        assert len(list(tmp_path.iterdir())) == 2
        pull.kill()
    assert len(list(tmp_path.iterdir())) == 2
    add(store, "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_pulls_of_one_name_at_once_leave_one_of_them_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    contents = [str(number) for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: add(store, "a", content), contents))
    assert (store.require("a") / "bundle.json").read_text() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["c", "../a", ".", "", "a/bundle.json"])
def test_unknown_names_are_refused_with_those_that_there_are(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, "a")
    with pytest.raises(StoreError, match="the models here are a"):
        store.remove(name)
    assert store.names() == ["a"]


@pytest.mark.parametrize(
    ("given", "name"),
    [("openai/whisper-tiny.en", "whisper-tiny.en"), ("/data/My Model/", "my-model"), ("Qwen/Q.gguf", "q"), ("...", "model")],
)
def test_a_model_is_named_after_its_checkpoint(given: str, name: str) -> None:
    assert model_name(given) == name
