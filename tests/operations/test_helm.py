"""The Helm chart, linted and rendered by Helm's own code, against the schemas of Kubernetes and against the server."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings
from tests.repo.test_deploy import RULES, steps_of

chart = pytest.importorskip("helm_python.chart", reason="helm-python-sdk is not installed (the extra `operations`)")
kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed (the extra `operations`)"
)
pytestmark = pytest.mark.operations

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "thinbridge"
KEYS = {"keys": {"existingSecret": "thinbridge-keys"}}
EVERYTHING = {
    **KEYS,
    "autoscaling": {"enabled": True},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
    "ingress": {"enabled": True, "host": "speech.example", "tlsSecret": "speech-tls", "className": "nginx"},
    "model": {"bundle": "whisper-small", "existingClaim": "models"},
    "settings": {"slots": "8"},
}
GPU = {**yaml.safe_load((CHART / "values-gpu.yaml").read_text()), **KEYS}
CASES = {"defaults": KEYS, "everything": EVERYTHING, "gpu": GPU}
# Of the Prometheus operator, whose schemas are not among those of Kubernetes.
CUSTOM = {"ServiceMonitor", "PrometheusRule"}
KUBERNETES = ("1.27.0", "1.37.0")


def render(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rendered objects by kind."""
    files = chart.Chart.load(str(CHART)).render(values, name="speech", namespace="voices")
    documents = [each for name, text in files.items() if name.endswith(".yaml") for each in yaml.safe_load_all(text) if each]
    return {each["kind"]: each for each in documents}


def container_of(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    container: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_lint_finds_nothing(values: dict[str, Any]) -> None:
    report = chart.lint(str(CHART), values, strict=True)
    assert report["total_charts_linted"] == 1
    # Severity 1 is information: the chart has no icon.
    assert [each for each in report["messages"] if each["severity"] > 1] == []
    assert not report["errors"]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_objects_fit_the_schemas_of_kubernetes(values: dict[str, Any], version: str) -> None:
    for kind, each in render(values).items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(each, version, strict=True)


def test_each_part_is_rendered_when_it_is_asked_for() -> None:
    assert set(render(KEYS)) == {"Deployment", "Service", "PodDisruptionBudget"}
    assert set(render(EVERYTHING)) == set(render(KEYS)) | {"HorizontalPodAutoscaler", "Ingress", *CUSTOM}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_server_knows_every_setting(values: dict[str, Any]) -> None:
    environment = {each["name"]: each["value"] for each in container_of(render(values))["env"]}
    settings = {name.removeprefix("THINBRIDGE_").lower(): value for name, value in environment.items()}
    assert set(settings) <= set(Settings.model_fields)
    settings["api_keys"] = "robot:0123456789abcdef0123456789abcdef"
    del settings["api_keys_file"]
    assert Settings(**settings).device == environment.get("THINBRIDGE_DEVICE", "cpu")


def test_nothing_starts_without_keys() -> None:
    with pytest.raises(Exception, match=r"keys\.existingSecret has to name a Secret"):
        render({})


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(Exception, match="replica"):
        render({**KEYS, "replica": 3})


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_a_pod_has_time_to_drain(values: dict[str, Any]) -> None:
    pod = render(values)["Deployment"]["spec"]["template"]["spec"]
    environment = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    (_, seconds) = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + int(environment["THINBRIDGE_DRAIN_TIMEOUT_S"])


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_a_pod_runs_as_the_image_s_user_without_rights(values: dict[str, Any]) -> None:
    pod = render(values)["Deployment"]["spec"]["template"]["spec"]
    (user,) = [arguments for name, arguments in steps_of("cpu") if name == "RUN" and "useradd" in arguments]
    assert f"--uid {pod['securityContext']['runAsUser']} " in user
    context = pod["containers"][0]["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert not context["allowPrivilegeEscalation"]
    assert not pod["automountServiceAccountToken"]


def test_a_gpu_is_asked_for_and_used() -> None:
    container = container_of(render(GPU))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "THINBRIDGE_DEVICE", "value": "cuda"} in container["env"]
    assert {"name": "THINBRIDGE_GPUS", "value": "0"} in container["env"]


def test_the_rules_of_the_chart_are_the_deployed_ones() -> None:
    groups = render(EVERYTHING)["PrometheusRule"]["spec"]["groups"]
    assert [rule for group in groups for rule in group["rules"]] == RULES


def test_the_autoscaler_does_not_fight_with_a_number_of_replicas() -> None:
    assert "replicas" not in render(EVERYTHING)["Deployment"]["spec"]
    assert render(KEYS)["Deployment"]["spec"]["replicas"] == 2
