"""Put load on a server, ask Prometheus every query of the dashboards and alerts, then kill the engine and see the alert fire.

    python -m deploy.observe                # writes loadtest/results/observe.md and .png

Needs Debian's package `prometheus` and the extras `dev` and `operations`. Starts a server, a Prometheus and locust's users of its
own. Exit status 1 where a query has no value or the alert did not fire.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploy.observe.prometheus import Prometheus, Series
from deploy.observe.queries import Query, dashboard_queries, rule_queries
from deploy.observe.report import markdown, plot_panels, without_value
from loadtest.clients.server import BenchServer, add_server_flags, server_options
from loadtest.faults import engine_pid
from loadtest.support.machine import describe_run
from loadtest.support.process import OthersWatch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "loadtest" / "results"
PERIOD = "2s"
RATE_INTERVAL = "1m"
SHOWN_ELSEWHERE = {("Thinbridge", "Time to first token"), ("Thinbridge", "End of an utterance to its answer")}
"""Panels that both dashboards have."""
ALERT = "ThinbridgeEngineRestarted"
ALERT_WAIT_S = 60.0


def start_users(url: str, seconds: float, users: int) -> subprocess.Popen[str]:
    """Start locust's mixed users, which stop by themselves."""
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "users" / "mixed.py"), "--headless", "--host", url]
    command += [
        "--users",
        str(users),
        "--spawn-rate",
        "2",
        "--run-time",
        f"{seconds:.0f}s",
        "--stop-timeout",
        "30",
        "--only-summary",
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def await_alert(prometheus: Prometheus, name: str, timeout_s: float) -> list[str]:
    """Wait until an alert fires; return all that fire then."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s and prometheus.alerts().get(name) != "firing":
        time.sleep(1.0)
    return sorted(name for name, state in prometheus.alerts().items() if state == "firing")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_server_flags(parser)
    parser.add_argument("--seconds", type=float, default=180.0, help="of load; at least two minutes fill the rates")
    parser.add_argument("--users", type=int, default=6)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    result: dict[str, Any] = describe_run(ROOT)
    others = OthersWatch()
    with (
        BenchServer(ROOT, server_options(arguments)) as server,
        Prometheus([urlsplit(server.url).netloc], period=PERIOD) as prometheus,
    ):
        users = start_users(server.url, arguments.seconds, arguments.users)
        time.sleep(arguments.seconds - 5)
        queries = [*dashboard_queries(RATE_INTERVAL), *rule_queries()]
        found = [(query, prometheus.query(query.expression)) for query in queries]
        series = [
            (query, prometheus.query_range(query.expression, arguments.seconds)) for query in dashboard_queries(RATE_INTERVAL)
        ]
        summary = users.communicate(timeout=120)[0]
        os.kill(engine_pid(server.pid), signal.SIGKILL)
        fired = await_alert(prometheus, ALERT, ALERT_WAIT_S)
    result |= {
        "other_cpu_share": round(others.share(), 4),
        "seconds": arguments.seconds,
        "load": f"{arguments.users} users of loadtest/users/mixed.py",
        "prometheus": _prometheus_version(),
        "period": PERIOD,
        "rate_interval": RATE_INTERVAL,
        "alert_wait_s": ALERT_WAIT_S,
        "complaints": [line for line in summary.splitlines() if line.startswith(("VOID: ", "FAILED: "))],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "observe.md").write_text(markdown(result, found, fired, "observe.png"), encoding="utf-8")
    values = [{"title": query.title, "expression": query.expression, "values": value} for query, value in found]
    (arguments.out / "observe.json").write_text(json.dumps(result | {"queries": values}, indent=1) + "\n", encoding="utf-8")
    panels: dict[tuple[str, str], list[tuple[str, Series]]] = {}
    for query, points in series:
        if points and (query.source, query.title) not in SHOWN_ELSEWHERE:
            panels.setdefault((query.title, query.unit), []).append((query.legend, points))
    plot_panels(panels, arguments.out / "observe.png", result["load"])
    missing: list[Query] = without_value(found)
    for query in missing:
        print(f"No value: {query.title}: {query.expression}")
    print(f"{len(found)} queries, {len(missing)} without a value; alerts that fired: {', '.join(fired) or 'none'}")
    return 1 if missing or ALERT not in fired else 0


def _prometheus_version() -> str:
    told = subprocess.run(["prometheus", "--version"], capture_output=True, text=True, check=False)
    return (told.stdout + told.stderr).split("version ")[1].split(" ")[0].strip(",")


if __name__ == "__main__":
    sys.exit(main())
