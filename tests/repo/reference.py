"""Write the tables of the documentation that come from the code.

python -m tests.repo.reference     # docs/reference.md, and the settings in docs/settings.md
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIWebSocketRoute

from server.api.app import create_app
from server.errors import ServeError
from server.observability.metrics import ENGINE_COUNTERS, ENGINE_GAUGES, MEMBER_VALUES, Metrics
from server.settings import Settings
from tests.support.clients.live_server import fixed_source
from tests.support.fakes.fake_engine import FakeEngine

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE, SETTINGS = DOCS / "reference.md", DOCS / "settings.md"
BEGIN, END = "<!-- settings -->\n", "<!-- /settings -->"


def settings_table() -> str:
    """Return the table of docs/settings.md."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "`~/.cache/thinbridge`" if name == "cache_dir" else "" if field.default is None else f"`{field.default}`"
        rows.append((f"`{name}`", default, str(field.description)))
    return table(("Setting", "Default", "Meaning"), rows)


def settings_page() -> str:
    """Return docs/settings.md with the table of today's settings."""
    before, _, rest = SETTINGS.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + settings_table() + END + rest.partition(END)[2]


def reference_page() -> str:
    """Return docs/reference.md."""
    app = create_app([fixed_source(FakeEngine())], Settings(decode_workers=1))
    parts = [
        "# Endpoints, errors, metrics",
        "Written from the code by `python -m tests.repo.reference`; a test compares. [settings.md](settings.md) has the "
        "settings. A running server describes the fields of its endpoints at `/docs`, and for programs at `/openapi.json`.",
        "## Endpoints",
        table(("Method", "Path", ""), endpoints(app)),
        "`/v1/listen` and `/v1/models/{name}` are the addresses of others: of [Deepgram](deepgram.md) and [OpenAI](openai.md).",
        "## Errors",
        "[api.md](api.md#errors) says when each comes. `type` and `code` are the fields of the reply; `code` is stable.",
        table(("Status", "`code`", "`type`", "Meaning"), errors()),
        "## Metrics",
        "At `/metrics`, in Prometheus' text format. Counters are served with `_total` behind their names, histograms as "
        "`_bucket`, `_sum` and `_count`.",
        table(("Metric", "Kind", "Labels", "Meaning"), metrics()),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def endpoints(app: FastAPI) -> list[tuple[str, str, str]]:
    """Return method, path and summary of every endpoint that is described, then the WebSockets."""
    rows = [
        (method.upper(), f"`{path}`", str(operation.get("summary", "")))
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    ]
    sockets = [route for route in all_routes(app) if isinstance(route, APIWebSocketRoute)]
    return rows + [("WebSocket", f"`{route.path}`", str(route.endpoint.__doc__ or "").split("\n")[0]) for route in sockets]


def all_routes(holder: Any) -> Iterator[Any]:
    """Yield the routes of an application or a router, those of included routers too."""
    for route in holder.routes:
        inner = getattr(route, "original_router", None)
        yield from all_routes(inner) if inner is not None else [route]


def errors() -> list[tuple[str, str, str, str]]:
    """Return status, code, type and meaning of every error that a client can see."""
    found = sorted(subclasses(ServeError), key=lambda error: (error.status, error.code))
    return [(str(error.status), f"`{error.code}`", f"`{error.type}`", summary_of(error)) for error in found]


def summary_of(error: type[ServeError]) -> str:
    """Return the first line of an error's own docstring."""
    return (vars(error)["__doc__"] or "").split("\n")[0]


def subclasses(error: type[ServeError]) -> list[type[ServeError]]:
    """Return an error and all that are derived from it."""
    return [error, *(each for child in error.__subclasses__() for each in subclasses(child))]


def metrics() -> list[tuple[str, str, str, str]]:
    """Return name, kind, labels and meaning of every metric."""
    served = Metrics(dict, lambda: 0)
    holders = [*vars(served).values(), *vars(served.live).values()]
    rows = [
        (metric.name, metric.type, each._labelnames, metric.documentation)
        for each in holders
        if hasattr(each, "describe")
        for metric in each.describe()
    ]
    for kind, engine_metrics in (("gauge", ENGINE_GAUGES), ("counter", ENGINE_COUNTERS)):
        rows += [(f"thinbridge_{each.name}", kind, ("model", *each.labels), each.documentation) for each in engine_metrics]
    rows += [
        (f"thinbridge_{name}", family("name", "help").type, ("model", "engine"), text) for family, name, text, _ in MEMBER_VALUES
    ]
    restarts = [each for each in served.registry.collect() if each.name == "thinbridge_decode_worker_restarts"]
    rows += [(each.name, each.type, (), each.documentation) for each in restarts]
    return [(f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), text) for name, kind, labels, text in sorted(rows)]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]] | list[Any]) -> str:
    """Return a table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def main() -> None:
    REFERENCE.write_text(reference_page(), encoding="utf-8")
    SETTINGS.write_text(settings_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
