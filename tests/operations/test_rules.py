"""promtool accepts the configuration and the rules, and plays every alert."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.operations,
    pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian's package prometheus)"),
]

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.parametrize(
    "command",
    [["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]],
    ids=" ".join,
)
def test_promtool_finds_no_fault(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout + done.stderr
