"""Engine replicas on two nodes of a Ray cluster on this machine, with the edge on the head. Needs the `ray` extra."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.ray.engine import RayEngine
from loadtest.support.process import process_tree
from server.engine.types.events import Done, Ended, Failed
from server.engine.types.protocol import Engine
from server.engine.types.requests import LiveRequest, SpeechTask
from server.errors import EngineFailed, NotReady, ServeError
from tests.support.clients.engine_call import Call, request, wait_until
from tests.support.clients.live_client import LiveClient
from tests.support.clients.ray_fleet import (
    CHANGE_TIMEOUT_S,
    SETTINGS,
    Clients,
    EngineCluster,
    replica_processes,
    run_session,
    session_audio,
    wait_for_members,
)

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

MOST_SESSIONS = 16
HALF_A_SESSION = 8_000
OBJECT_STORE_BYTES = 100 * 2**20


class Nodes(EngineCluster):
    """A Ray cluster: the head with the edge, and a second node. Each has one CPU to give away, so room for one replica."""

    def __init__(self, bundle: Path) -> None:
        from ray.cluster_utils import Cluster

        from deploy.ray import cluster

        super().__init__(cluster, bundle, cpus=1.0)
        self._resources = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
        head = {"include_dashboard": False, "_system_config": cluster.SYSTEM_CONFIG, **self._resources}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: list[Any] = [self._cluster.head_node]
        self.add()
        cluster.join_cluster(self._cluster.address)

    def add(self) -> None:
        """Add a node, and wait until it belongs to the cluster."""
        self._nodes.append(self._cluster.add_node(wait=True, **self._resources))

    def silence(self) -> None:
        """Stop all that runs on the second node: its connections stay open, and nothing comes through them."""
        for pid in process_tree(self._raylet(self._nodes[-1])):
            os.kill(pid, signal.SIGSTOP)

    def remove(self) -> None:
        """Kill the second node with all that runs on it."""
        node = self._nodes.pop()
        processes = process_tree(self._raylet(node))
        self._cluster.remove_node(node, allow_graceful=False)
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def replicas(self) -> list[int]:
        """Return how many engine replicas run on each node."""
        running = set(replica_processes())
        return [len(running & set(process_tree(self._raylet(node)))) for node in self._nodes]

    def stop(self) -> None:
        """End the engines and all nodes."""
        self.module.leave_cluster(stop=True)
        self._cluster.shutdown()

    def _raylet(self, node: Any) -> int:
        """Return the process id of the node's agent, the parent of all that runs on it."""
        pid: int = node.all_processes["raylet"][0].process.pid
        return pid


@pytest.fixture(scope="module")
def nodes(bundle: Path) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    running = Nodes(bundle)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def fleet(nodes: Nodes) -> Iterator[RayEngine]:
    """Run a replica on each node, and an edge's engine over them."""
    yield from nodes.run_fleet()


@pytest.fixture
def two(fleet: RayEngine, nodes: Nodes) -> RayEngine:
    return nodes.restore_two(fleet)


def open_sessions(fleet: RayEngine) -> tuple[list[LiveClient], dict[str, int]]:
    """Begin sessions until each replica has one; return them, and how many each replica has."""
    sessions: list[LiveClient] = []
    while not all(count := {id: stats.live_sessions for id, stats in fleet.stats().members.items()}.values()):
        assert len(sessions) < MOST_SESSIONS, count
        sessions.append(LiveClient(fleet, LiveRequest(f"session {len(sessions)}", SpeechTask("Transcribe."))))
        sessions[-1].say(session_audio(len(sessions))[:HALF_A_SESSION])
        wait_until(lambda: fleet.stats().live_sessions == len(sessions))
    return sessions, {id: stats.live_sessions for id, stats in fleet.stats().members.items()}


def end_session(session: LiveClient, number: int) -> Ended | Failed:
    """Say the other half, and return how the session ended."""
    session.say(session_audio(number)[HALF_A_SESSION:])
    return session.end()


def assert_refused_at_most(outcomes: list[Done | ServeError]) -> None:
    """Assert that nothing was lost: nodes have no room for a new replica beside the old one, so 503 comes where both change."""
    assert [each for each in outcomes if not isinstance(each, Done | NotReady)] == []


def test_a_replica_on_each_node_gives_the_texts_of_one_process(two: RayEngine, nodes: Nodes, single: Engine) -> None:
    assert nodes.replicas() == [1, 1]
    requests = [request(f"r{seed}", seed) for seed in range(8)]
    expected = [Call(single, each).done().text for each in requests]
    calls = [Call(two, each) for each in requests]
    assert [call.done().text for call in calls] == expected
    assert [run_session(two, f"s{seed}", seed) for seed in range(2)] == [
        run_session(single, f"s{seed}", seed) for seed in range(2)
    ]
    wait_until(lambda: all(stats.counters.generated_tokens for stats in two.stats().members.values()))


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_a_lost_node_costs_its_own_requests_and_sessions(two: RayEngine, nodes: Nodes, how: str) -> None:
    sessions, count = open_sessions(two)
    clients = Clients(two, 4)
    clients.wait_for(4)
    if how == "silent":
        nodes.silence()
    else:
        nodes.remove()
    wait_for_members(two, 1)
    clients.wait_for(8)
    (survivor,) = two.stats().members
    ends = [end_session(session, number + 1) for number, session in enumerate(sessions)]
    assert sum(isinstance(each, Ended) for each in ends) == count[survivor]
    assert all(isinstance(each.error, EngineFailed) for each in ends if isinstance(each, Failed))
    failures = [outcome for outcome in clients.stop() if not isinstance(outcome, Done)]
    assert all(isinstance(failure, EngineFailed) for failure in failures), failures
    assert len(failures) <= 4
    if how == "silent":
        nodes.remove()
    nodes.add()
    wait_for_members(two, 2)
    assert nodes.replicas() == [1, 1]


def test_a_node_is_emptied_without_a_lost_answer(two: RayEngine, nodes: Nodes) -> None:
    sessions, _ = open_sessions(two)
    clients = Clients(two, 4)
    clients.wait_for(4)
    resize = threading.Thread(target=nodes.deploy, args=(1,))
    resize.start()
    clients.wait_for(8)
    assert all(isinstance(end_session(session, number + 1), Ended) for number, session in enumerate(sessions))
    resize.join(CHANGE_TIMEOUT_S)
    wait_for_members(two, 1)
    wait_until(lambda: sorted(nodes.replicas()) == [0, 1])
    clients.wait_for(4)
    assert_refused_at_most(clients.stop())


def test_an_update_goes_from_node_to_node_without_a_lost_answer(two: RayEngine, nodes: Nodes) -> None:
    before = set(replica_processes())
    clients = Clients(two, 4)
    clients.wait_for(4)
    nodes.deploy(2, SETTINGS.model_copy(update={"slots": 2}))
    clients.wait_for(4)
    assert_refused_at_most(clients.stop())
    assert not before & set(replica_processes())
    wait_until(lambda: nodes.replicas() == [1, 1])
