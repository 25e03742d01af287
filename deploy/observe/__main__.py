"""Put load on a server, ask Prometheus every query of the dashboards and alerts, then kill the engine and see the alert fire.

    python -m deploy.observe                # writes loadtest/results/observe.md and .png

Needs Debian's package `prometheus` and the extras `dev` and `operations`. Starts a server, a Prometheus and locust's users of its
own. Exit status 1 where a query has no value or the alert did not fire.
"""

import os
import signal
import subprocess
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from deploy.observe.prometheus import Prometheus, Series
from deploy.observe.queries import Query, dashboard_queries, rule_queries
from deploy.observe.report import markdown, plot_panels, without_value
from loadtest.clients.server import BenchServer, add_server_flags, server_options
from loadtest.faults import engine_pid
from loadtest.support.machine import describe_run
from loadtest.support.options import add_results_flag, new_parser
from loadtest.support.paths import ROOT
from loadtest.support.process import OthersWatch
from loadtest.support.results import write_results
from loadtest.users.headless import running_users

PERIOD = "2s"
RATE_INTERVAL = "1m"
SHOWN_ELSEWHERE = {("Thinbridge", "Time to first token"), ("Thinbridge", "End of an utterance to its answer")}
"""Panels that both dashboards have."""
ALERT = "ThinbridgeEngineRestarted"
ALERT_WAIT_S = 60.0


def await_alert(prometheus: Prometheus, name: str, timeout_s: float) -> list[str]:
    """Wait until an alert fires; return all that fire then."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s and prometheus.alerts().get(name) != "firing":
        time.sleep(1.0)
    return sorted(name for name, state in prometheus.alerts().items() if state == "firing")


def main() -> int:
    parser = new_parser(__doc__)
    add_server_flags(parser)
    parser.add_argument("--seconds", type=float, default=180.0, help="of load; at least two minutes fill the rates")
    parser.add_argument("--users", type=int, default=6)
    add_results_flag(parser)
    arguments = parser.parse_args()

    result: dict[str, Any] = describe_run(ROOT)
    others = OthersWatch()
    with (
        BenchServer(ROOT, server_options(arguments)) as server,
        Prometheus([urlsplit(server.url).netloc], period=PERIOD) as prometheus,
        running_users(server.url, arguments.users, arguments.seconds) as users,
    ):
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
    values = [{"title": query.title, "expression": query.expression, "values": value} for query, value in found]
    write_results(arguments.out, "observe", result | {"queries": values}, markdown(result, found, fired, "observe.png"))
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
    printed = subprocess.run(["prometheus", "--version"], capture_output=True, text=True, check=False)
    return (printed.stdout + printed.stderr).split("version ")[1].split(" ")[0].strip(",")


if __name__ == "__main__":
    sys.exit(main())
