"""The tiny bundle of a cluster's engine replicas, and one engine in this process to compare them with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine.factory import build_engine
from server.engine.types.protocol import Engine
from tests.support.clients.ray_fleet import SETTINGS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.tiny.tiny_bundle import write_speaking_bundle

    folder = tmp_path_factory.mktemp("bundle")
    write_speaking_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def single(bundle: Path) -> Iterator[Engine]:
    engine = build_engine(bundle, SETTINGS)
    engine.start()
    yield engine
    engine.drain(0)
