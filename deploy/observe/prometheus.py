"""A Prometheus of our own: the binary, with the configuration and the rules that are deployed, on a loopback port."""

import math
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from deploy.observe.queries import DEPLOY, RULES

START_TIMEOUT_S = 60.0
POINTS = 120
Series = list[tuple[Mapping[str, str], list[tuple[float, float]]]]
"""Labels, and (moment, value) pairs, of each time series."""


class PrometheusError(RuntimeError):
    """Prometheus did not start, or refused a query."""


class Prometheus:
    """A context manager: scrapes servers as `deploy/prometheus.yml` says, but more often, and evaluates the deployed rules."""

    def __init__(self, targets: Sequence[str], *, period: str = "1s") -> None:
        """Start and wait until it answers. `targets` are `host:port`. Raises `PrometheusError`."""
        self._folder = tempfile.TemporaryDirectory(prefix="prometheus-")
        folder = Path(self._folder.name)
        configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
        configuration["global"] = {"scrape_interval": period, "evaluation_interval": period}
        configuration["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        shutil.copy(RULES, folder)
        port = _free_port()
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        self._log = (folder / "log").open("w+")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0, trust_env=False)
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            try:
                if self._client.get("/-/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self._log.seek(0)
        raise PrometheusError(f"Prometheus did not start: {self._log.read()[-2000:]}")

    def query(self, expression: str) -> dict[str, float]:
        """Return the values of an instant query by their labels; not a number is no value. Raises `PrometheusError`."""
        result = self._ask("/api/v1/query", query=expression)["result"]
        values = {_text_of(each["metric"]): float(each["value"][1]) for each in result}
        return {labels: value for labels, value in values.items() if not math.isnan(value)}

    def query_range(self, expression: str, seconds: float) -> Series:
        """Return the values of the last `seconds`."""
        end_s = time.time()
        step_s = max(1.0, seconds / POINTS)
        result = self._ask("/api/v1/query_range", query=expression, start=end_s - seconds, end=end_s, step=step_s)["result"]
        return [(each["metric"], [(float(moment), float(value)) for moment, value in each["values"]]) for each in result]

    def alerts(self) -> dict[str, str]:
        """Return the state, `pending` or `firing`, of each alert that has one."""
        return {each["labels"]["alertname"]: each["state"] for each in self._ask("/api/v1/alerts")["alerts"]}

    def _ask(self, path: str, **parameters: object) -> dict[str, Any]:
        reply = self._client.get(path, params={name: str(value) for name, value in parameters.items()}).json()
        if reply["status"] != "success":
            raise PrometheusError(f"{parameters}: {reply['error']}")
        data: dict[str, Any] = reply["data"]
        return data

    def close(self) -> None:
        """Stop it and delete what it stored."""
        self._client.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _text_of(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()) if name not in ("__name__", "job", "instance"))
