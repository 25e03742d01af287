"""The routes that an application has."""

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI


def routes_of(app: FastAPI) -> list[Any]:
    """Return every route of an application, those of included routers too."""
    return list(_flatten(app.routes))


def _flatten(routes: Iterable[Any]) -> Iterator[Any]:
    for route in routes:
        yield from _flatten(route.original_router.routes) if hasattr(route, "original_router") else [route]
