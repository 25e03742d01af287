"""Headers of reverse proxies, believed only if they come from a proxy that the settings name."""

import ipaddress
from collections.abc import Iterable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Scope

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Of an IPv6 address, these bits are one customer's.
CLIENT_PREFIX_BITS = 64


class TrustedProxies:
    """The addresses of reverse proxies."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks: tuple[Network, ...] = tuple(ipaddress.ip_network(each, strict=False) for each in networks)

    def __contains__(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)

    def client_of(self, forwarded: Sequence[str]) -> str | None:
        """Return the last address of an `X-Forwarded-For` chain that is no proxy of ours, or None without one."""
        for text in reversed(forwarded):
            try:
                address = str(ipaddress.ip_address(text.strip().strip("[]")))
            except ValueError:
                return None
            if address not in self:
                return address
        return None

    def see_through(self, scope: Scope) -> Scope:
        """Return a scope with the client, scheme and host by the headers of a trusted proxy; of any other peer as it is."""
        client = scope.get("client")
        if client is None or client[0] not in self:
            return scope
        headers = Headers(scope=scope)
        seen = {**scope, "headers": list(scope["headers"])}
        chain = ",".join(headers.getlist("x-forwarded-for")).split(",")
        if address := self.client_of(chain):
            seen["client"] = (address, 0)
        scheme = headers.get("x-forwarded-proto", "").strip().lower()
        if scheme in ("http", "https"):
            seen["scheme"] = scheme.replace("http", "ws") if scope["type"] == "websocket" else scheme
        if host := headers.get("x-forwarded-host"):
            MutableHeaders(scope=seen)["host"] = host.split(",")[-1].strip()
        return seen


def client_name(address: str) -> str:
    """Return the name of the client at an address: of IPv6, the whole network that one customer has."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, CLIENT_PREFIX_BITS), strict=False))
