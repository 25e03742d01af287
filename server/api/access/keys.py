"""API keys: how they are written down, where a client offers one, and how an offered key is compared."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from starlette.datastructures import Headers

from server.settings import Settings, SettingsError

# A name, then the key itself or its SHA-256.
ENTRY = re.compile(
    r"(?:(?!sha256:)(?P<name>[A-Za-z0-9_.-]{1,64}):)?(?:sha256:(?P<digest>[0-9a-f]{64})|(?P<key>[A-Za-z0-9._~+/=-]{16,256}))"
)
# A word after a key in the file of keys.
ADMIN_MARK = "admin"
SCHEMES = ("bearer", "token")
KEY_HEADERS = ("api-key", "x-api-key")
# Browsers can set no headers on a WebSocket. OpenAI's clients put the key behind this prefix, Deepgram's behind `token`.
OPENAI_PROTOCOL = "openai-insecure-api-key."
DEEPGRAM_PROTOCOL = "token"


@dataclass(frozen=True)
class KeyLimits:
    """The most that a client with this key may ask for; None is no limit."""

    requests_per_minute: float | None = None
    concurrent_requests: int | None = None
    audio_s_per_minute: float | None = None


@dataclass(frozen=True)
class ApiKey:
    """One key. Keys of one name are one client, so a key can be replaced while both are valid."""

    name: str
    digest: bytes
    limits: KeyLimits
    is_admin: bool = False
    """Whether its clients may load and unload models."""


class KeyRing:
    """The keys of a server. Without keys every client is let in, so `is_open` has to be asked first."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = tuple(keys)
        self.is_open = not self._keys
        self.own_key = secrets.token_urlsafe(32)
        """A key for the server's check of itself, made anew at each start."""
        self._own = ApiKey("self-check", digest_of(self.own_key), KeyLimits())

    def find(self, offered: Iterable[str]) -> ApiKey | None:
        """Return the first valid key among those offered. Takes as long for a wrong key as for a right one."""
        found = None
        for text in offered:
            digest = digest_of(text)
            for key in (*self._keys, self._own):
                if hmac.compare_digest(digest, key.digest) and found is None:
                    found = key
        return found


def digest_of(key: str) -> bytes:
    """Return the SHA-256 of a key, by which it is compared."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def load_keys(settings: Settings) -> KeyRing:
    """Return the keys of the settings and of their file. Raises `SettingsError`, which quotes no key."""
    limits = KeyLimits(settings.key_requests_per_minute, settings.key_concurrent_requests, settings.key_audio_s_per_minute)
    keys: list[ApiKey] = []
    if settings.api_keys is not None:
        entries = settings.api_keys.get_secret_value().split(",")
        keys += [_read_entry(f"Key {number} of api_keys", entry.strip(), limits) for number, entry in enumerate(entries, 1)]
    if settings.api_keys_file is not None:
        keys += _read_file(settings.api_keys_file, limits)
        if not keys:
            raise SettingsError(f"The file of api_keys_file, {settings.api_keys_file}, holds no key.")
    if len({key.digest for key in keys}) < len(keys):
        raise SettingsError("One API key is given twice.")
    return KeyRing(keys)


def offered_keys(headers: Headers) -> Iterator[str]:
    """Yield the keys in the headers of a request."""
    for value in headers.getlist("authorization"):
        scheme, _, key = value.strip().partition(" ")
        if scheme.lower() in SCHEMES:
            yield key.strip()
    for name in KEY_HEADERS:
        yield from headers.getlist(name)


def split_subprotocols(offered: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the subprotocols of a WebSocket that are names, and the keys among them."""
    names: list[str] = []
    keys: list[str] = []
    for index, protocol in enumerate(offered):
        if protocol.startswith(OPENAI_PROTOCOL):
            keys.append(protocol.removeprefix(OPENAI_PROTOCOL))
        elif index and offered[index - 1].lower() == DEEPGRAM_PROTOCOL:
            keys.append(protocol)
        else:
            names.append(protocol)
    return names, keys


def _read_file(path: Path, limits: KeyLimits) -> list[ApiKey]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"The file of api_keys_file, {path}, cannot be read: {reason}.") from None
    keys = []
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        if words:
            place = f"Line {number} of api_keys_file"
            marks = [word for word in words[1:] if word != ADMIN_MARK]
            key = _read_entry(place, words[0], _read_limits(place, marks, limits))
            keys.append(replace(key, is_admin=ADMIN_MARK in words[1:]))
    return keys


def _read_entry(place: str, entry: str, limits: KeyLimits) -> ApiKey:
    match = ENTRY.fullmatch(entry)
    if match is None:
        raise SettingsError(
            f"{place} is no key: write KEY or NAME:KEY, of 16 to 256 letters, digits and ._~+/=-, "
            "or sha256: and the key's SHA-256 in place of the key."
        )
    digest = bytes.fromhex(match["digest"]) if match["digest"] else digest_of(match["key"])
    return ApiKey(match["name"] or f"key-{digest.hex()[:8]}", digest, limits)


def _read_limits(place: str, words: list[str], limits: KeyLimits) -> KeyLimits:
    values = dict(vars(limits))
    for word in words:
        name, _, value = word.partition("=")
        if name not in values or not re.fullmatch(r"[0-9]{1,9}", value) or not int(value):
            raise SettingsError(f"{place} has the limit {word!r}; limits are {', '.join(values)}, as in {next(iter(values))}=60.")
        values[name] = int(value)
    return KeyLimits(**values)
