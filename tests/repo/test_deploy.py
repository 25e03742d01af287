"""The ops files fit each other and the server: metrics exist, settings are known, paths and ports agree."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.observe.queries import DASHBOARDS as DASHBOARD_FILES
from export.default_recipe import DEFAULT_PRECISION, GPU_PRECISION
from server.settings import Settings
from tests.support.clients.live_server import LiveServer, audio_file, instruct, live_server, tone, wait_until
from tests.support.fakes.fake_engine import FakeEngine

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DASHBOARDS = [json.loads(path.read_text()) for path in DASHBOARD_FILES]
PANELS = [panel for dashboard in DASHBOARDS for panel in dashboard["panels"]]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
LEGENDS = {target["expr"]: target["legendFormat"] for panel in PANELS for target in panel["targets"]}
RULES = [rule for group in yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())["groups"] for rule in group["rules"]]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
PROFILES = {profile for service in SERVICES.values() for profile in service["profiles"]}
SETTINGS = {f"THINBRIDGE_{name.upper()}" for name in Settings.model_fields}


def dockerfile() -> list[tuple[str, str, str]]:
    """(stage, instruction, arguments), continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    stage, steps = "", []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            instruction, arguments = line.split(maxsplit=1)
            if instruction == "FROM":
                stage = arguments.split()[-1]
            steps.append((stage, instruction, arguments))
    return steps


STEPS = dockerfile()
STAGES = {arguments.split()[-1]: arguments.split()[0] for _, instruction, arguments in STEPS if instruction == "FROM"}


def steps_of(target: str) -> list[tuple[str, str]]:
    """The steps of a stage and of those that it is built on, in order."""
    inherited = steps_of(STAGES[target]) if target in STAGES else []
    return inherited + [(name, arguments) for stage, name, arguments in STEPS if stage == target]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """A server that has answered and refused."""
    with live_server(FakeEngine()) as server:
        wait_until(lambda: server.client.get("/ready").status_code == 200)
        assert instruct(server, audio_file(tone(0.5, 16_000), 16_000, "WAV")).status_code == 200
        assert instruct(server, b"no audio").status_code == 415
        yield server


@pytest.fixture(scope="module")
def samples(server: LiveServer) -> dict[str, set[str]]:
    """Label names by sample name, as Prometheus would scrape them now."""
    families = text_string_to_metric_families(server.client.get("/metrics").text)
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def require_served(expression: str, samples: dict[str, set[str]], grouping: set[str]) -> None:
    """Require that an expression names recorded rules, and metrics and labels that a server serves, alerts aside."""
    recorded = set(re.findall(r"job:\w+:\w+", expression))
    assert recorded <= RECORDED
    used = re.findall(r"(thinbridge_\w+)(?:\{(.*?)\})?", re.sub(r"job:\w+:\w+", "", expression))
    assert used or recorded or re.search(r"\b(ALERTS|up)\{", expression)
    for name, matchers in used:
        if not name.startswith("thinbridge_gpu_"):
            assert name in samples
            assert grouping | set(re.findall(r"(\w+)(?:=~|!=|!~|=)\"", matchers)) <= samples[name]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_dashboard_asks_for_what_is_served(expression: str, samples: dict[str, set[str]]) -> None:
    grouping = {label.strip() for group in re.findall(r"by \((.*?)\)", expression) for label in group.split(",")}
    if "thinbridge_gpu_" not in expression:
        assert set(re.findall(r"\{\{(\w+)\}\}", LEGENDS[expression])) <= grouping
    require_served(expression, samples, grouping)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_ask_for_what_is_served(rule: dict[str, Any], samples: dict[str, set[str]]) -> None:
    require_served(rule["expr"], samples, set())


def test_every_alert_says_what_it_means_and_what_to_do_and_is_tested() -> None:
    alerts = [rule for rule in RULES if "alert" in rule]
    played = yaml.safe_load((ROOT / "deploy/alerts_test.yml").read_text())["tests"]
    firing = {each["alertname"] for case in played for each in case["alert_rule_test"] if each.get("exp_alerts")}
    assert {alert["alert"] for alert in alerts} == firing
    page = (ROOT / "docs/operations.md").read_text()
    for alert in alerts:
        assert set(alert["annotations"]) == {"summary", "action"}
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert f"`{alert['alert']}`" in page


def test_dashboard_shows_every_kind_of_metric(samples: dict[str, set[str]]) -> None:
    names = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in samples if not name.endswith("_created")}
    assert {name for name in names if not any(name in expression for expression in EXPRESSIONS)} == set()


def test_dashboard_uses_the_provisioned_datasource() -> None:
    datasources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {datasource["uid"] for datasource in datasources}
    assert datasources[0]["url"] == "http://prometheus:9090"
    for dashboard in DASHBOARDS:
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert len({dashboard["uid"] for dashboard in DASHBOARDS}) == len(DASHBOARDS)


def test_prometheus_scrapes_the_server() -> None:
    jobs = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    host, port = jobs[0]["static_configs"][0]["targets"][0].split(":")
    for service in ("server", "server-gpu"):
        assert host in SERVICES[service]["networks"]["default"]["aliases"]
        assert f"127.0.0.1:{port}:{port}" in SERVICES[service]["ports"]
    assert {environment_of(target)["THINBRIDGE_PORT"] for target in ("cpu", "gpu")} == {port}


def environment_of(target: str) -> dict[str, str]:
    """Return the variables that the ENV steps of an image set."""
    pairs = [pair for name, arguments in steps_of(target) if name == "ENV" for pair in shlex.split(arguments)]
    return dict(pair.split("=", 1) for pair in pairs)


def test_mounted_files_exist_where_grafana_looks() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    for source in (mount.split(":")[0] for mount in mounts):
        assert (ROOT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"]
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/thinbridge.yml").read_text())["providers"][0]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_profiles() -> None:
    assert {"cpu", "gpu", "observe", "load"} == PROFILES
    assert SERVICES["load"]["build"]["target"] in STAGES
    (command,) = [json.loads(arguments) for name, arguments in steps_of("load") if name == "CMD"]
    assert (ROOT / command[command.index("-f") + 1]).exists()


@pytest.mark.parametrize("service", ["server", "server-gpu", "load"])
def test_service_has_no_rights(service: str) -> None:
    definition = SERVICES[service]
    assert definition["read_only"]
    assert definition["cap_drop"] == ["ALL"]
    assert definition["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("service", ["server", "server-gpu"])
def test_server_service(service: str) -> None:
    definition = SERVICES[service]
    assert definition["build"]["target"] in STAGES
    assert set(definition["environment"]) <= SETTINGS
    grace_s, drain_s = definition["stop_grace_period"], definition["environment"]["THINBRIDGE_DRAIN_TIMEOUT_S"]
    assert int(grace_s.removesuffix("s")) > int(drain_s)
    assert definition["profiles"] == [definition["build"]["target"]]


def test_nothing_is_published_beyond_this_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("service", ["server", "server-gpu"])
def test_no_container_serves_others_without_keys(service: str) -> None:
    assert "THINBRIDGE_INSECURE" not in environment_of(SERVICES[service]["build"]["target"])
    environment = SERVICES[service]["environment"]
    assert "THINBRIDGE_INSECURE" not in environment
    # Compose refuses to start without a value.
    assert environment["THINBRIDGE_API_KEYS"].startswith("${THINBRIDGE_API_KEYS:?")


def test_prometheus_gets_the_metrics() -> None:
    jobs = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    host, _port = jobs[0]["static_configs"][0]["targets"][0].split(":")
    for service in ("server", "server-gpu"):
        environment = SERVICES[service]["environment"]
        assert environment["THINBRIDGE_PUBLIC_METRICS"] == "true"
        assert environment["THINBRIDGE_ALLOWED_HOSTS"] == f"${{THINBRIDGE_ALLOWED_HOSTS:-{host}}}"


def test_images_are_pinned() -> None:
    for image in [service["image"] for service in SERVICES.values() if "build" not in service] + [STAGES["environment"]]:
        assert re.search(r":v?\d+\.\d+", image), image


@pytest.mark.parametrize("target", ["cpu", "gpu", "load"])
def test_image_runs_as_a_user_without_rights(target: str) -> None:
    assert [arguments for name, arguments in steps_of(target) if name == "USER"][-1] == "thinbridge"


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_image_serves(target: str) -> None:
    steps = steps_of(target)
    assert [arguments for name, arguments in steps if name == "CMD"] == ['["thinbridge", "serve"]']


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_image_sets_only_known_settings(target: str) -> None:
    own = {name for name in environment_of(target) if name.startswith("THINBRIDGE_")}
    assert own
    assert own <= SETTINGS


@pytest.mark.parametrize(("target", "precision"), [("cpu", DEFAULT_PRECISION), ("gpu", GPU_PRECISION)])
def test_image_has_the_bundle_that_its_device_serves_where_it_is_looked_for(target: str, precision: str) -> None:
    environment = environment_of(target)
    assert environment.get("THINBRIDGE_DEVICE", "cpu") == {"cpu": "cpu", "gpu": "cuda"}[target]
    copied = [arguments.split() for name, arguments in steps_of(target) if name == "COPY" and "--from" in arguments]
    assert [each[-1] for each in copied] == [environment["THINBRIDGE_CACHE_DIR"]]
    stage, folder = copied[0][0].removeprefix("--from="), copied[0][-2]
    (build,) = [arguments for each, name, arguments in STEPS if each == stage and name == "RUN"]
    options = shlex.split(build.split("&&")[0])[3:]
    assert options[options.index("--cache-dir") + 1] == folder
    assert ("--precision" in options) == (precision != DEFAULT_PRECISION)
    assert precision in (*options, DEFAULT_PRECISION)


def test_what_is_made_on_the_gpu_goes_to_a_volume() -> None:
    """Plans, their timings and Triton's kernels: the rest of the file system is read-only."""
    environment = environment_of("gpu")
    (volume,) = SERVICES["server-gpu"]["volumes"]
    name, folder = volume.split(":")
    assert name in COMPOSE["volumes"]
    assert folder == environment["THINBRIDGE_CACHE_DIR"] == f"{environment['XDG_CACHE_HOME']}/thinbridge"
    assert environment["TRITON_CACHE_DIR"].startswith(f"{folder}/")
    assert SERVICES["server-gpu"]["read_only"]


def test_copied_files_exist_and_are_not_ignored() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    copies = [arguments.split()[:-1] for _, name, arguments in STEPS if name == "COPY" and "--from" not in arguments]
    assert copies
    for source in (source for sources in copies for source in sources):
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, rule.removeprefix("!")) for rule in rules if rule.startswith("!")), source


def test_health_check_command(server: LiveServer) -> None:
    """Run as it is written, but for the port: it passes while the server answers and fails when it does not."""
    arguments = next(arguments for _, name, arguments in STEPS if name == "HEALTHCHECK")
    command = json.loads(arguments[arguments.index("[") :])
    command[0] = sys.executable
    health = [part.replace(":8000/", f":{server.port}/") for part in command]
    gone = [part.replace("/health", "/nothing") for part in health]
    assert subprocess.run(health, check=False).returncode == 0
    assert subprocess.run(gone, check=False, stderr=subprocess.DEVNULL).returncode != 0
