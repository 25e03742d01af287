"""The page `/docs`: the API's OpenAPI description as plain HTML, without scripts or anything from another server."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem } td, th { border-bottom: 1px solid #8884; padding: .3rem .5rem;
text-align: left; vertical-align: top } code { font-size: .95em } h2 { margin-top: 2.5rem }
"""


def reference_page(description: Mapping[str, Any]) -> str:
    """Return the page for an OpenAPI description."""
    body = "\n".join(_operations(description))
    title = escape(str(description["info"]["title"]))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: API</title><style>{STYLE}</style></head>'
        f'<body><h1>{title}: API</h1><p>For programs: <a href="openapi.json">openapi.json</a></p>{body}</body></html>'
    )


def _operations(description: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('summary', ''))}</p>"
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                rows = [(name, _kind(field), field.get("description", "")) for name, field in _fields(description, content)]
                yield _table(f"Fields of <code>{escape(kind)}</code>", rows)
            parameters = [
                (each["name"], _kind(each["schema"]), each.get("description", "")) for each in operation.get("parameters", ())
            ]
            yield _table("Parameters", parameters)
            replies = [(status, "", reply.get("description", "")) for status, reply in operation.get("responses", {}).items()]
            yield _table("Replies", replies)


def _fields(description: Mapping[str, Any], content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    schema = content.get("schema", {})
    if reference := schema.get("$ref"):
        schema = description["components"]["schemas"][reference.rpartition("/")[2]]
    yield from schema.get("properties", {}).items()


def _kind(schema: Mapping[str, Any]) -> str:
    """Return the type and the choices of a field in words."""
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if choices := schema.get("enum"):
        return ", ".join(map(str, choices))
    return str(schema.get("type") or schema.get("$ref", "").rpartition("/")[2])


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td><td>{escape(text)}</td></tr>"
        for name, kind, text in rows
    )
    return f"<table><tr><th colspan=3>{title}</th></tr>{cells}</table>"
