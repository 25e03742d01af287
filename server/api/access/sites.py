"""The names by which this server may be called, and the pages that may call it.

Browsers let any page send requests to any address, this machine's loopback included. A page whose name is made to lead to this
server (DNS rebinding) may even read the answers. `Origin` gives the first away, and `Host` the second.
"""

import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers

from server.errors import ForbiddenHost, ForbiddenOrigin, InvalidRequest

AUTHORITY = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?", re.ASCII)
ANY = "*"
ANY_PORT = ":*"
# Methods that change nothing; browsers send them without an origin where a page only links.
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
CORS_MAX_AGE_S = 600
CORS_METHODS = "GET, POST, DELETE, OPTIONS"
CORS_HEADERS = "authorization, content-type, api-key, x-api-key, x-request-id"
CORS_EXPOSED = "x-request-id, retry-after, server-timing"


class SiteRules:
    """Decides by `Host` and `Origin`. Addresses, `localhost` and the server's own origin are always allowed.

    An allowed host is a name, or `*.` and a domain. An allowed origin is written as browsers send it (`https://app.example`,
    `null`), and may end in `:*` for every port. A lone `*` allows every one.
    """

    def __init__(self, allowed_hosts: Iterable[str] = (), allowed_origins: Iterable[str] = ()) -> None:
        self._hosts = frozenset(host.lower() for host in allowed_hosts)
        self._origins = frozenset(origin.lower() for origin in allowed_origins)

    def check_host(self, headers: Headers, *, http_version: str) -> None:
        """Raise `InvalidRequest` unless there is one host, and `ForbiddenHost` unless it may be used."""
        hosts = headers.getlist("host")
        if len(hosts) > 1 or (not hosts and http_version != "1.0"):
            raise InvalidRequest("A request has to have one Host header.")
        if hosts and not self._allows_host(hosts[0].lower()):
            raise ForbiddenHost(
                "This server does not answer by this name; its setting allowed_hosts lists the names that it has."
            )

    def check_origin(self, headers: Headers, *, method: str) -> str | None:
        """Return the foreign origin that is allowed, or None where the server's own page or no page asks.

        Raises `ForbiddenOrigin`, and `InvalidRequest` for several origins.
        """
        origins = headers.getlist("origin")
        if len(origins) > 1:
            raise InvalidRequest("A request has one Origin header at most.")
        if not origins:
            if method not in SAFE_METHODS and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
                raise ForbiddenOrigin("A page of another site may not send this request.")
            return None
        origin = origins[0].lower()
        host = headers.get("host", "").lower()
        if host and origin in (f"http://{host}", f"https://{host}"):
            return None
        if self._allows_origin(origin):
            return origins[0]
        raise ForbiddenOrigin(
            "A page of another site may not send this request; the setting allowed_origins lists those that may."
        )

    def _allows_host(self, host: str) -> bool:
        match = AUTHORITY.fullmatch(host)
        if ANY in self._hosts:
            return True
        if match is None:
            return False
        if match["address"] is not None:
            return _is_address(match["address"])
        name = match["name"].removesuffix(".")
        if name == "localhost" or name.endswith(".localhost") or _is_address(name) or name in self._hosts:
            return True
        return any(f"*.{domain}" in self._hosts for domain in _parents(name))

    def _allows_origin(self, origin: str) -> bool:
        if ANY in self._origins or origin in self._origins:
            return True
        return re.sub(r":[0-9]+$", "", origin) + ANY_PORT in self._origins


def is_preflight(headers: Headers, *, method: str) -> bool:
    """Return whether a browser asks if it may send another request."""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def cors_headers(origin: str) -> dict[str, str]:
    """Return the headers with which a page of this origin may read the reply."""
    return {"access-control-allow-origin": origin, "access-control-expose-headers": CORS_EXPOSED}


def preflight_headers(origin: str, headers: Headers) -> dict[str, str]:
    """Return the headers of the answer to a preflight request."""
    answer = cors_headers(origin) | {
        "access-control-allow-methods": CORS_METHODS,
        # OpenAI's SDK sends many headers of its own.
        "access-control-allow-headers": headers.get("access-control-request-headers") or CORS_HEADERS,
        "access-control-max-age": str(CORS_MAX_AGE_S),
    }
    if headers.get("access-control-request-private-network") == "true":
        answer["access-control-allow-private-network"] = "true"
    return answer


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _parents(name: str) -> list[str]:
    labels = name.split(".")
    return [".".join(labels[index:]) for index in range(1, len(labels))]
