"""OpenAI's own client of a test's server, and strict readers of what the server sends."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, TypeVar

import httpx
import httpx2
from openai import OpenAI
from pydantic import BaseModel, TypeAdapter

Model = TypeVar("Model", bound=BaseModel)


@contextlib.contextmanager
def openai_client(url: str) -> Iterator[OpenAI]:
    """Yield a client that tries every request once and uses no proxy."""
    with (
        httpx2.Client(trust_env=False) as http,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http) as client,
    ):
        yield client


def strictly(model: type[Model], content: Any) -> Model:
    """Return JSON as one of OpenAI's models. Raises `ValidationError`, which OpenAI's client itself never does."""
    return TypeAdapter(model).validate_python(content)


def event_contents(response: httpx.Response) -> list[Any]:
    """Return the contents of all events of a stream, each of which is one line of data; the last is the mark of the end."""
    *lines, last, end = response.text.split("\n\n")
    if (last, end) != ("data: [DONE]", ""):
        raise AssertionError(f"no mark of the end: {response.text[-100:]!r}")
    return [json.loads(line.removeprefix("data: ")) for line in lines]
