"""Requests of the benchmarks that ask a server about one recording after the other."""

from pathlib import Path
from typing import Any

import httpx

TIMEOUT_S = 300.0


def open_client(url: str) -> httpx.Client:
    """Return a client for one server, to close after use. It waits long, and follows no proxy of the environment."""
    return httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)


def ask_about(client: httpx.Client, file: Path, instruction: str, **fields: str | None) -> dict[str, Any]:
    """Return the reply to an instruction about a file; fields that are None are not sent. Raises `httpx.HTTPError`."""
    data = {"instruction": instruction} | {name: value for name, value in fields.items() if value is not None}
    reply = client.post("/v1/instruct", files={"audio": file.read_bytes()}, data=data)
    reply.raise_for_status()
    content: dict[str, Any] = reply.json()
    return content
