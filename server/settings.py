"""Every setting of the server, read once and frozen. The only reader of the environment.

Precedence: command line flag, then `THINBRIDGE_<NAME>` in the environment, then the default below.
"""

import difflib
import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ENVIRONMENT_PREFIX = "THINBRIDGE_"
GPU_NUMBERS = r"^\d{1,3}(,\d{1,3})*$"
MODEL_NAMES = r"^[\w./:@+-]*(,[\w./:@+-]+)*$"
# Settings that apply to GPUs only.
GPU_SETTINGS = ("gpus", "encoder_runtime", "adapter_runtime", "tensorrt_library", "slot_positions")
# As many slots as the LLM's plan decodes at once. Not measured on a GPU.
GPU_DEFAULTS = {"slots": 32, "queue_limit": 128}


class SettingsError(ValueError):
    """A setting is unknown or has a bad value; the message is one or more sentences for the operator."""


def _default_cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "thinbridge"


PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Frozen settings; unknown names are errors. Build them with `load_settings`."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on. Any but loopback needs API keys, or `insecure`.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    insecure: bool = Field(default=False, description="Allow a public address without API keys.")

    api_keys: SecretStr | None = Field(
        default=None,
        description="API keys that clients need, by commas, each as KEY or NAME:KEY, of at least 16 characters.",
    )
    api_key: SecretStr | None = Field(
        default=None, description="API key that `thinbridge mic` sends to a server that needs one; `serve` ignores the setting."
    )
    api_keys_file: Path | None = Field(
        default=None, description="File with an API key in each line, as above, and limits of its own (docs/security.md)."
    )
    key_requests_per_minute: int | None = Field(default=None, ge=1, description="Requests in a minute for each API key.")
    key_concurrent_requests: int | None = Field(
        default=None, ge=1, description="Requests and sessions at a time for each API key."
    )
    key_audio_s_per_minute: PositiveNumber | None = Field(
        default=None, description="Seconds of audio in a minute for each API key."
    )
    public_page: bool = Field(default=True, description="Show the page `/`, `/docs` and `/openapi.json` without an API key.")
    public_metrics: bool = Field(default=False, description="Show `/metrics` without an API key.")
    allowed_hosts: str = Field(
        default="",
        description="Names of this server besides addresses and localhost, by commas: `speech.example`, `*.example`, `*`.",
    )
    allowed_origins: str = Field(
        default="",
        description="Origins of other pages that may call, by commas: `https://app.example`, `http://localhost:*`, `null`, `*`.",
    )
    trusted_proxies: str = Field(
        default="",
        description="Addresses or networks of reverse proxies, by commas, whose `X-Forwarded-*` headers are believed.",
    )
    tls_certificate: Path | None = Field(
        default=None, description="File of the TLS certificate chain in PEM; with it, HTTPS only."
    )
    tls_key: Path | None = Field(default=None, description="File of the certificate's private key in PEM.")
    max_connections: int = Field(
        default=2048,
        ge=8,
        description="Open connections, shared between clients; fewer where `ulimit -n` allows no more.",
    )

    bundle: Path | None = Field(
        default=None,
        description="A pulled model, or `small`, `base`, `large` or `slm`, which are built, or a folder; unset means `base`.",
    )
    other_models: str = Field(
        default="",
        description="Models served beside `bundle`, by commas: names or folders. Requests name them by `model`.",
    )
    model_idle_timeout_s: PositiveNumber | None = Field(
        default=None,
        description="Seconds without work after which a model is unloaded until a request needs it; unset means never.",
    )
    model_aliases: str = Field(
        default="whisper-1,gpt-4o-transcribe,gpt-4o-mini-transcribe,gpt-transcribe",
        pattern=MODEL_NAMES,
        description="Names, separated by commas, that OpenAI's clients may call the default model by besides its own.",
    )
    cache_dir: Path = Field(default_factory=_default_cache_folder, description="Folder in which models are built and kept.")

    slots: int = Field(
        default=4,
        ge=1,
        le=256,
        description="Requests that each LLM works on at the same time; each holds its own K/V cache. Unset means 32 on a GPU.",
    )
    queue_limit: int = Field(
        default=16,
        ge=0,
        le=4096,
        description="Requests that may wait for a slot of each model; beyond it the answer is 429. Unset means 128 on a GPU.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads of the model runtime; unset means one per CPU core, or as a container's quota allows.",
    )

    device: Literal["cpu", "cuda"] = Field(default="cpu", description="Device on which the models compute.")
    gpus: str = Field(
        default="0",
        pattern=GPU_NUMBERS,
        description="Numbers of the GPUs, such as 0,1,3: one engine process each, with slots, queue and sessions of its own.",
    )
    encoder_runtime: Literal["onnxruntime", "tensorrt"] = Field(
        default="onnxruntime", description="Runtime of the encoder on a GPU."
    )
    adapter_runtime: Literal["triton", "tensorrt"] = Field(default="triton", description="Runtime of the adapter on a GPU.")
    tensorrt_library: Literal["tensorrt", "tensorrt_rtx"] = Field(
        default="tensorrt", description="The TensorRT library that runs the plans on a GPU."
    )
    slot_positions: int | None = Field(
        default=None,
        ge=64,
        description="Least positions of a K/V slot on a GPU, for which there is a plan; unset means the model's.",
    )

    max_queue_wait_s: PositiveNumber | None = Field(
        default=None,
        description="Longest predicted wait for a slot; beyond it, or `request_timeout_s` with the answer, the reply is 429.",
    )
    encoder_cache_bytes: int = Field(
        default=0,
        ge=0,
        description="Memory for encoder outputs that a client's next instruction on the same clip reuses; 0 is off.",
    )

    engine: Literal["process", "thread"] = Field(
        default="process", description="Place of the models: a supervised child process, or a thread of the server itself."
    )
    stall_timeout_s: PositiveNumber = Field(
        default=10.0, ge=2, description="Seconds without progress after which the engine process is replaced; at least 2."
    )

    max_body_bytes: int = Field(
        default=32 * 2**20, ge=1024, description="Largest request body in bytes; beyond it the answer is 413."
    )
    max_audio_s: PositiveNumber = Field(
        default=600.0, description="Longest audio in seconds; what the model does not take in one piece is cut at its pauses."
    )
    min_audio_s: float = Field(default=0.08, ge=0, allow_inf_nan=False, description="Shortest audio in seconds.")
    max_instruction_characters: int = Field(default=2000, ge=1, le=100_000, description="Longest instruction in characters.")
    max_tokens_limit: int = Field(default=512, ge=1, le=100_000, description="Largest `max_tokens` that a request may ask for.")
    default_max_tokens: int = Field(default=256, ge=1, le=100_000, description="`max_tokens` of a request that names none.")

    header_timeout_s: PositiveNumber = Field(default=10.0, description="Seconds a client may take to send the head of a request.")
    body_timeout_s: PositiveNumber = Field(default=30.0, description="Seconds in which 4 KiB of a body have to come, or its end.")
    write_timeout_s: PositiveNumber = Field(default=20.0, description="Seconds that a client may read nothing of an answer.")
    request_timeout_s: PositiveNumber = Field(
        default=60.0,
        description="Seconds from the body's end to the answer, and of a recording from one sign of progress to the next.",
    )
    stream_heartbeat_s: PositiveNumber = Field(
        default=5.0, description="Seconds of silence after which a stream shows that it is alive."
    )
    drain_timeout_s: float = Field(
        default=30.0, ge=0, allow_inf_nan=False, description="Seconds that running requests get at shutdown."
    )
    keep_alive_timeout_s: int = Field(default=5, ge=1, description="Seconds that an idle connection is kept open.")

    wyoming_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="TCP port for Home Assistant's protocol Wyoming, which knows no keys; none by default. 0 takes a free one, "
        "which the log names.",
    )

    live_sessions: int = Field(
        default=16, ge=0, le=4096, description="Live sessions at the same time; beyond it a `start` is refused as `overloaded`."
    )
    live_backlog_s: PositiveNumber = Field(
        default=5.0,
        description="Seconds of audio that a live session may be ahead of what was listened to; beyond it nothing more is read.",
    )
    live_idle_timeout_s: PositiveNumber = Field(
        default=10.0, description="Seconds without a message after which a live session is ended."
    )
    live_max_session_s: PositiveNumber = Field(default=7200.0, description="Seconds after which a live session is ended.")
    live_send_timeout_s: PositiveNumber = Field(
        default=5.0, description="Seconds that the client of a live session may take to read an event."
    )

    decode_workers: int = Field(default=2, ge=1, le=64, description="Child processes that decode audio.")
    decode_streams: int = Field(
        default=16, ge=0, le=256, description="Recordings and live Opus streams at a time, each with a decode process of its own."
    )
    decode_timeout_s: PositiveNumber = Field(
        default=10.0, description="Seconds after which a decode, or a step of a long one, is killed."
    )
    decode_memory_bytes: int = Field(default=768 * 2**20, ge=384 * 2**20, description="Address space of one decode process.")

    traces: bool = Field(
        default=False,
        description="Send traces by OpenTelemetry (OTLP over HTTP) to where its own variables say; needs the extra `otel`.",
    )
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="Least severe level that is logged."
    )

    @model_validator(mode="before")
    @classmethod
    def _scale_with_device(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**GPU_DEFAULTS, **values} if values.get("device") == "cuda" else values

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, text: str) -> str:
        for network in _split(text):
            ipaddress.ip_network(network, strict=False)
        return text

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if not self.insecure and not self.has_keys and not is_loopback(self.host):
            raise ValueError(
                f"The host {self.host!r} can be reached from other machines and there are no API keys: set THINBRIDGE_API_KEYS, "
                "listen on 127.0.0.1, or accept the risk with --insecure (THINBRIDGE_INSECURE=true)"
            )
        if self.wyoming_port is not None and not self.insecure and not is_loopback(self.host):
            raise ValueError(
                "Wyoming's clients have no keys, so its port on a host that other machines reach needs --insecure "
                "(THINBRIDGE_INSECURE=true); API keys still guard everything else"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("TLS needs both tls_certificate and tls_key")
        if self.default_max_tokens > self.max_tokens_limit:
            raise ValueError("The default_max_tokens must not exceed max_tokens_limit")
        if self.max_audio_s < self.min_audio_s:
            raise ValueError("The max_audio_s must not be below min_audio_s")
        self._check_device()
        return self

    def _check_device(self) -> None:
        if len(set(self.gpu_numbers)) < len(self.gpu_numbers):
            raise ValueError(f"The gpus {self.gpus} name one GPU twice")
        if self.device == "cpu":
            for name in GPU_SETTINGS:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"The {name} setting is about GPUs: it needs the device cuda (THINBRIDGE_DEVICE=cuda)")
        if self.engine == "thread" and len(self.gpu_numbers) > 1:
            raise ValueError("A thread has one GPU: several gpus need the engine process (THINBRIDGE_ENGINE=process)")

    @property
    def has_keys(self) -> bool:
        """Whether clients need an API key."""
        return self.api_keys is not None or self.api_keys_file is not None

    @property
    def allowed_host_names(self) -> tuple[str, ...]:
        return _split(self.allowed_hosts)

    @property
    def allowed_origin_names(self) -> tuple[str, ...]:
        return _split(self.allowed_origins)

    @property
    def trusted_networks(self) -> tuple[str, ...]:
        return _split(self.trusted_proxies)

    @property
    def model_alias_names(self) -> tuple[str, ...]:
        """Those of `model_aliases`."""
        return _split(self.model_aliases)

    @property
    def other_model_names(self) -> tuple[str, ...]:
        """Those of `other_models`."""
        return _split(self.other_models)

    @property
    def gpu_numbers(self) -> tuple[int, ...]:
        """Those of `gpus`, one per engine."""
        return tuple(map(int, self.gpus.split(",")))


def _split(text: str) -> tuple[str, ...]:
    return tuple(part for part in (each.strip() for each in text.split(",")) if part)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(**flags: Any) -> Settings:
    """Settings from the environment, overridden by `flags` that are not None. Raises `SettingsError`."""
    _refuse_unknown_variables()
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(" ".join(_sentence(detail) for detail in error.errors(include_url=False))) from None


REMOVED_SETTINGS = {"encode_gather_s": "the engine decides by itself how long requests are gathered; leave the setting out"}
"""Settings that older versions had, and what to do without each."""


def _refuse_unknown_variables() -> None:
    known = [ENVIRONMENT_PREFIX + name.upper() for name in Settings.model_fields]
    for name in os.environ:
        if name.upper() in known or not name.upper().startswith(ENVIRONMENT_PREFIX):
            continue
        if advice := REMOVED_SETTINGS.get(name.upper().removeprefix(ENVIRONMENT_PREFIX).lower()):
            raise SettingsError(f"The environment variable {name} is a setting of an older version: {advice}.")
        nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0)[0]
        raise SettingsError(f"The environment variable {name} is no setting of this server; the nearest is {nearest}.")


def _sentence(detail: Any) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    problem = str(detail["msg"]).removeprefix("Value error, ").rstrip(".")
    if detail["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(name, list(Settings.model_fields), n=1, cutoff=0)[0]
        return f"{name!r} is no setting of this server; the nearest is {nearest!r}."
    return f"Setting {name!r}: {problem}." if name else f"{problem}."
