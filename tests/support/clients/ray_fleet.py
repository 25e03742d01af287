"""Clients of engine replicas on a Ray cluster of this machine."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from deploy.ray.engine import RayEngine
from deploy.ray.scaling import Fleet
from models.bundle.io import open_bundle
from models.protocols import Float32
from server.engine.types.events import Done, Ended
from server.engine.types.protocol import Engine
from server.engine.types.requests import LiveRequest, SpeechTask
from server.errors import NotReady, ServeError
from server.settings import Settings
from tests.support.clients.engine_call import Call, request
from tests.support.clients.live_client import LiveClient
from tests.support.clients.live_server import tone

APPLICATION = "tiny"
SETTINGS = Settings(engine="thread", threads=1, drain_timeout_s=20)
RATE_HZ = 16_000
CHANGE_TIMEOUT_S = 90.0
RETRY_S = 0.2


class EngineCluster:
    """A running Ray cluster whose engine replicas take `cpus` each. `module` is `deploy.ray.cluster`.

    That imports Ray, so it is given, and collecting tests does not need Ray.
    """

    def __init__(self, module: ModuleType, bundle: Path, cpus: float) -> None:
        self.module = module
        self._bundle, self._cpus = bundle, cpus

    def deploy(self, replicas: int, settings: Settings = SETTINGS) -> None:
        """Run so many replicas, or update those that run."""
        fleet = Fleet(replicas, replicas, cpus=self._cpus)
        self.module.deploy_engines(APPLICATION, self._bundle, settings, fleet)

    def open_edge(self) -> RayEngine:
        """Return the engine of an edge, yet to be started."""
        return RayEngine(self.module.find_engines(APPLICATION), open_bundle(self._bundle).manifest)

    def run_fleet(self) -> Iterator[RayEngine]:
        """Run two replicas, yield an edge's engine over them, and drain that."""
        self.deploy(2)
        engine = self.open_edge()
        engine.start()
        yield engine
        engine.drain(1.0)

    def restore_two(self, fleet: RayEngine) -> RayEngine:
        """Return the fleet with two replicas ready, whatever the test before has done to it."""
        if len(fleet.stats().members) != 2:
            self.deploy(2)
        wait_for_members(fleet, 2)
        return fleet


def wait_for_members(fleet: RayEngine, count: int) -> None:
    deadline_s = time.monotonic() + CHANGE_TIMEOUT_S
    while [stats.ready for stats in fleet.stats().members.values()] != [True] * count:
        assert time.monotonic() < deadline_s, fleet.stats()
        time.sleep(0.1)


def replica_processes() -> list[int]:
    """Return the process ids of the engine replicas."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if words.startswith(f"ray::ServeReplica:{APPLICATION}:".encode()):
            found.append(int(folder.name))
    return found


class Clients:
    """Clients that each send one request after the other until `stop`, and what they saw."""

    def __init__(self, fleet: Engine, count: int) -> None:
        self.outcomes: list[Done | ServeError] = []
        self._fleet = fleet
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask_on(self, client: int) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            self.outcomes.append(Call(self._fleet, request(f"client {client}/{number}", seed=number % 5)).outcome())
            if isinstance(self.outcomes[-1], NotReady):
                self._stopping.wait(RETRY_S)

    def wait_for(self, count: int) -> None:
        """Return when so many more requests have been answered."""
        wanted, deadline_s = self._answered + count, time.monotonic() + CHANGE_TIMEOUT_S
        while self._answered < wanted:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)

    @property
    def _answered(self) -> int:
        return sum(isinstance(outcome, Done) for outcome in self.outcomes)

    def stop(self) -> list[Done | ServeError]:
        self._stopping.set()
        for thread in self._threads:
            thread.join(CHANGE_TIMEOUT_S)
        return self.outcomes


def session_audio(seed: int) -> Float32:
    """Return a second that the tiny detector takes for speech, and silence around it."""
    return np.concatenate([np.zeros(4_000, np.float32), tone(1.0, RATE_HZ, 200.0 + 50 * seed), np.zeros(RATE_HZ, np.float32)])


def run_session(engine: Engine, id: str, seed: int) -> list[str]:
    client = LiveClient(engine, LiveRequest(id, SpeechTask("Transcribe.")))
    client.say(session_audio(seed), piece=RATE_HZ // 25)
    assert isinstance(client.end(), Ended)
    return client.texts()
