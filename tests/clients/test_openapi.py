"""schemathesis sends thousands of requests that follow or break the OpenAPI description: no fault, one shape of errors."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.test_clients import CLIENTS, PROGRAMS
from tests.support.clients.live_server import LiveServer, live_server, wait_until
from tests.support.fakes.fake_engine import FakeEngine

pytestmark = pytest.mark.clients

RECORDING = Path(__file__).parents[2] / "server" / "assets" / "selfcheck.flac"
CASES = 3000
CASES_PER_OPERATION = 300
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "one_error_shape",
)
TIMEOUT_S = 1800


@pytest.fixture
def server() -> Iterator[LiveServer]:
    engine = FakeEngine()
    with live_server(engine) as running:
        wait_until(lambda: engine.stats().ready)
        yield running


def test_no_request_is_a_fault_of_the_server(server: LiveServer, tmp_path: Path) -> None:
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "openapi_hooks", "RECORDING": str(RECORDING), "PYTHONPATH": str(PROGRAMS)}
    command = [str(CLIENTS / "bin" / "st"), "run", f"{server.url}/openapi.json", "--seed", "1", "--continue-on-failure"]
    command += ["--max-examples", str(CASES_PER_OPERATION), "--checks", ",".join(CHECKS)]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
    # The exit status also tells of requests that schemathesis could not make.
    assert "= FAILURES =" not in ended.stdout, ended.stdout
    assert ended.returncode in (0, 1), ended.stderr
    tried = re.search(r"(\d+) generated", ended.stdout)
    assert tried is not None, ended.stdout
    assert int(tried[1]) >= CASES
