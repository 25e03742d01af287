"""Requests about the same speech with another task."""

from dataclasses import replace
from typing import Any, TypeVar

from server.engine.types.requests import InstructRequest, LiveRequest

Request = TypeVar("Request", InstructRequest, LiveRequest)


def change_task(request: Request, **changes: Any) -> Request:
    """Return a request with other values of some fields of its task."""
    return replace(request, task=replace(request.task, **changes))
