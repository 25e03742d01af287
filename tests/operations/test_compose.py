"""docker-compose reads the compose file with every profile."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.repo.test_deploy import PROFILES

pytestmark = [
    pytest.mark.operations,
    pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed (Debian's package)"),
]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_the_configuration_of_a_profile_is_valid(profile: str) -> None:
    command = ["docker-compose", "--profile", profile, "config", "--services"]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "THINBRIDGE_API_KEYS": "key"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()


def test_nothing_starts_without_keys() -> None:
    command = ["docker-compose", "--profile", "cpu", "config", "--quiet"]
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": "/usr/local/bin:/usr/bin:/bin"}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "THINBRIDGE_API_KEYS" in done.stderr
