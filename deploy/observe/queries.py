"""The queries of the dashboards and of the alert rules, as they are asked of Prometheus."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[1]
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
RULES = DEPLOY / "alerts.yml"
# A threshold at the end of a comparison; label matchers have quotes and no number behind the operator.
THRESHOLD = re.compile(r"\s*(?:>=|<=|==|!=|>|<)\s*[\d.]+(?:\s*\*\s*[\d.]+)?")
NEEDS_SEVERAL_GPUS = "thinbridge_gpu_"


@dataclass(frozen=True)
class Query:
    """One query: the dashboard or rule file that asks it, the panel or rule, the line in its legend, and the expression."""

    source: str
    title: str
    legend: str
    expression: str
    unit: str = "short"

    @property
    def is_about_several_gpus(self) -> bool:
        """Whether a server has this metric only where it drives several GPUs."""
        return NEEDS_SEVERAL_GPUS in self.expression


def dashboard_queries(rate_interval: str = "1m") -> Iterator[Query]:
    """Yield every query of every panel, with `rate_interval` in place of Grafana's variable."""
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        for panel in dashboard["panels"]:
            unit = panel["fieldConfig"]["defaults"]["unit"]
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", rate_interval)
                yield Query(dashboard["title"], panel["title"], target["legendFormat"], expression, unit)


def rule_queries() -> Iterator[Query]:
    """Yield the expression of every recording rule, and for every alert the values that it judges, without its thresholds."""
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            expression = " ".join(rule["expr"].split())
            if "record" in rule:
                yield Query(RULES.name, rule["record"], "", expression)
            else:
                yield Query(RULES.name, rule["alert"], "judged value", THRESHOLD.sub("", expression))
