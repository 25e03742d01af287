"""The gauges and counters of a server."""

from collections import defaultdict

import httpx

PREFIX = "thinbridge_"


def read_metrics(client: httpx.Client) -> dict[str, float]:
    """Return the values at `/metrics` by name without `thinbridge_`, summed over labels; 0 for a name that is not there."""
    values: defaultdict[str, float] = defaultdict(float)
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(PREFIX):
            name, value = line.removeprefix(PREFIX).rsplit(" ", 1)
            values[name.partition("{")[0]] += float(value)
    return values
