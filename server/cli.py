"""The command line: `thinbridge serve | transcribe | mic | pull | models | show | remove | doctor | version`."""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.checkpoints.safetensors_file import CheckpointError
from export.fetch import FetchError
from export.store import StoreError
from models.bundle.io import BundleError
from models.protocols import BackendError
from server.api.formats import MEDIA_TYPES, SUBTITLES
from server.api.options import DEFAULT_INSTRUCTION
from server.engine.types.options import SamplingOptions, WordTimes
from server.engine.types.protocol import Engine
from server.errors import ServeError
from server.logs import configure_logging
from server.model_commands import add_pull_flags, model_store, models_command, pull_command, remove_command, show_command
from server.registry.room import check_room
from server.settings import GPU_SETTINGS, Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from export.recipe import Recipe
    from server.registry.registry import ModelSource

SETTING_FLAGS = (
    "host",
    "port",
    "insecure",
    "api_keys_file",
    "allowed_hosts",
    "allowed_origins",
    "bundle",
    "cache_dir",
    "threads",
    "slots",
    "queue_limit",
    "engine",
    "device",
    *GPU_SETTINGS,
    "stall_timeout_s",
    "log_level",
)


class CommandError(RuntimeError):
    """The command cannot go on; the message is for the operator."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings(**{**{name: getattr(options, name, None) for name in SETTING_FLAGS}, **_model_flags(options)})
        configure_logging(settings.log_level.upper())
        status: int = options.command(options, settings)
    except (SettingsError, CommandError, BundleError, BackendError, CheckpointError, StoreError, FetchError) as error:
        print(f"thinbridge: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def _model_flags(options: argparse.Namespace) -> dict[str, str]:
    """Return the settings of a `--model` that was given several times."""
    names: list[str] = getattr(options, "models", None) or []
    others = {"other_models": ",".join(names[1:])} if names[1:] else {}
    return {"bundle": names[0], **others} if names else {}


def serve_command(_options: argparse.Namespace, settings: Settings) -> int:
    """Listen, get the bundle, load the engine, serve."""
    from server.api.lifecycle import ListenError, base_url, listen, serve

    try:
        listener = listen(settings)
    except ListenError as error:
        raise CommandError(str(error)) from None
    with listener:
        url = base_url(listener, settings)
        print(f"Thinbridge {version()} at {url}", flush=True)
        folders = {name: get_bundle(_with_bundle(settings, name)) for name in asked_models(settings)}
        if len(folders) > 1:
            check_room(folders.values(), settings)
        sources = []
        for name, folder in folders.items():
            print(f"Loading {folder} ...", flush=True)
            sources.append(_source(name, folder, settings))
        try:
            return serve(sources, lambda name: find_model(name, settings), settings, listener)
        except ValueError as error:
            raise CommandError(str(error)) from None


def transcribe_command(options: argparse.Namespace, settings: Settings) -> int:
    """Run the engine in this process on some files; the text goes to stdout. Of several GPUs it takes the first."""
    one_engine = {"engine": "thread", "gpus": str(settings.gpu_numbers[0])}
    engine = load_engine(get_bundle(settings), settings.model_copy(update=one_engine))
    engine.start()
    try:
        return asyncio.run(_transcribe_files(engine, settings, options))
    finally:
        engine.drain(0)


def mic_command(options: argparse.Namespace, settings: Settings) -> int:
    """Play a file or stdin into a running server; the answers go to stdout, the waits for them to stderr."""
    from server.client.mic import MicError, MicSession, json_view, open_connection, open_source, text_view

    show_event = json_view(sys.stdout) if options.json else text_view(sys.stdout, is_terminal=sys.stdout.isatty())
    try:
        source = open_source(options.file, options.rate)
        key = None if settings.api_key is None else settings.api_key.get_secret_value()
        with open_connection(options.url, key) as connection:
            summary = MicSession(connection, source, options.speed, show_event).run({"instruction": options.instruction})
    except (ServeError, OSError) as error:
        raise CommandError(f"{options.file}: {error.strerror if isinstance(error, OSError) else error}") from None
    except MicError as error:
        raise CommandError(str(error)) from None
    for line in [*summary.failures, *summary.lines()]:
        print(line, file=sys.stderr)
    return 1 if summary.failures else 0


def doctor_command(_options: argparse.Namespace, settings: Settings) -> int:
    """Check this machine."""
    from server.doctor import run_checks

    find_bundles = {
        name or "the default bundle": partial(find_bundle, _with_bundle(settings, name)) for name in asked_models(settings)
    }
    results = run_checks(settings, find_bundles)
    for result in results:
        print(result.line())
    return 1 if any(result.advice for result in results) else 0


def version_command(_options: argparse.Namespace, _settings: Settings) -> int:
    """Print the version."""
    print(f"thinbridge {version()}")
    return 0


def version() -> str:
    """Return the installed version, or `unknown` when run from a folder that is not installed."""
    try:
        return importlib.metadata.version("thinbridge")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def find_bundle(settings: Settings) -> Path:
    """Return the folder that the bundle is or will be in; nothing is built."""
    recipe = _chosen_recipe(settings)
    if isinstance(recipe, Path):
        return recipe
    from export.default_bundle import bundle_folder

    try:
        return bundle_folder(settings.cache_dir, _default_precision(settings), recipe)
    except FileNotFoundError as error:
        raise CommandError(f"The default bundle cannot be built from this installation: {error.filename} is missing.") from None


def get_bundle(settings: Settings) -> Path:
    """Return the folder of the bundle that was asked for, or of the default one, built now unless the cache has it."""
    recipe = _chosen_recipe(settings)
    if isinstance(recipe, Path):
        if len(recipe.parts) == 1 and not recipe.exists():
            model_store(settings).require(str(recipe))
        return recipe
    from export.default_bundle import ensure_default_bundle

    try:
        find_bundle(settings)
        return ensure_default_bundle(settings.cache_dir, _default_precision(settings), recipe)
    except FetchError as error:
        raise CommandError(str(error)) from None


def _chosen_recipe(settings: Settings) -> "Recipe | Path":
    """Return the recipe that the bundle is built by, or the bundle's folder."""
    from export.default_recipe import DEFAULT_RECIPE, RECIPES

    if settings.bundle is None:
        return DEFAULT_RECIPE
    if pulled := model_store(settings).find(str(settings.bundle)):
        return pulled
    return RECIPES.get(str(settings.bundle), settings.bundle)


def _default_precision(settings: Settings) -> str:
    from export.default_recipe import DEFAULT_PRECISION, GPU_PRECISION

    return DEFAULT_PRECISION if settings.device == "cpu" else GPU_PRECISION


def load_engine(folder: Path, settings: Settings) -> Engine:
    """Return an engine over a bundle's models, yet to be started."""
    from server.engine.factory import build_engine

    return build_engine(folder, settings)


def asked_models(settings: Settings) -> list[str | None]:
    """Return the models to serve, the default first, each once; None stands for the bundle that is built without a setting."""
    first = None if settings.bundle is None else str(settings.bundle)
    return list(dict.fromkeys((first, *settings.other_model_names)))


def find_model(name: str, settings: Settings) -> "ModelSource":
    """Return a model that was pulled, or a built one, by its name, for a server that runs; nothing is built, no path is followed.

    Raises `LookupError` if there is no such model, and `BackendError` if it cannot be used or does not fit into memory.
    """
    from export.default_recipe import RECIPES
    from models.bundle.io import MANIFEST_NAME

    folder = model_store(settings).find(name)
    if folder is None and name in RECIPES:
        folder = find_bundle(_with_bundle(settings, name))
    if folder is None or not (folder / MANIFEST_NAME).exists():
        raise LookupError(name)
    check_room([folder], settings)
    return _source(name, folder, settings)


def _source(name: str | None, folder: Path, settings: Settings) -> "ModelSource":
    from server.registry.registry import ModelSource

    def build() -> Engine:
        check_room([folder], settings)
        return load_engine(folder, settings)

    return ModelSource(load_engine(folder, settings), build, name)


def _with_bundle(settings: Settings, name: str | None) -> Settings:
    return settings.model_copy(update={"bundle": None if name is None else Path(name)})


async def _transcribe_files(engine: Engine, settings: Settings, options: argparse.Namespace) -> int:
    """Print the answer for each file; return the exit status."""
    from server.api.context import build_decode_pool
    from server.api.native.rest import instruct_reply, write_reply
    from server.client.transcribe import instruct_file

    sampling = SamplingOptions(max_tokens=options.max_tokens or settings.default_max_tokens)
    word_times: WordTimes = "if_known" if options.format in SUBTITLES else "none"
    failures = 0
    pool = build_decode_pool(engine.sample_rate_hz, settings.model_copy(update={"decode_workers": 1}))
    await pool.start()
    async with contextlib.AsyncExitStack() as held:
        held.push_async_callback(pool.close)
        for path in options.files:
            try:
                data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
                answer = await instruct_file(engine, pool, data, options.instruction, sampling, word_times=word_times)
            except (ServeError, OSError) as error:
                failures += 1
                print(f"{path}: {error.strerror if isinstance(error, OSError) else error}", file=sys.stderr)
                continue
            if options.format == "json":
                fields = {"file": path, **instruct_reply(answer).model_dump(exclude={"id"}, exclude_none=True)}
                print(json.dumps(fields, ensure_ascii=False), flush=True)
            elif options.format == "text" and len(options.files) > 1:
                print(f"{path}: {answer.done.text}", flush=True)
            else:
                print(write_reply(answer, options.format).removesuffix("\n"), flush=True)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thinbridge", description="Audio and an instruction in, text out.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = _add_command(commands, "serve", "run the server", serve_command)
    _add_setting_flags(serve, *(name for name in SETTING_FLAGS if name != "bundle"))
    _add_models_flag(serve)

    transcribe = _add_command(commands, "transcribe", "run the models on audio files, without a server", transcribe_command)
    transcribe.add_argument("files", nargs="+", metavar="FILE", help="audio file; - reads one from stdin")
    transcribe.add_argument(
        "-i", "--instruction", default=DEFAULT_INSTRUCTION, help="what to do with the audio (default: %(default)s)"
    )
    transcribe.add_argument("--max-tokens", type=_positive, help="most tokens of an answer")
    transcribe.add_argument(
        "--format", choices=tuple(MEDIA_TYPES), default="text", help="what to print: text, a JSON object per file, or subtitles"
    )
    _add_setting_flags(transcribe, "bundle", "cache_dir", "threads", "device")

    mic = _add_command(commands, "mic", "play audio into a running server as it is spoken, and show what it hears", mic_command)
    mic.add_argument("file", metavar="FILE", help="audio file; - reads stdin, an audio file or raw mono 16-bit PCM")
    mic.add_argument(
        "-i", "--instruction", default=DEFAULT_INSTRUCTION, help="what to do with each utterance (default: %(default)s)"
    )
    mic.add_argument("--url", default="http://127.0.0.1:8000", help="where the server is (default: %(default)s)")
    mic.epilog = "A server that needs an API key gets the one in THINBRIDGE_API_KEY."
    mic.add_argument("--rate", type=_positive, help="sample rate of raw PCM in Hz (default: 16000 where stdin is no audio file)")
    mic.add_argument("--speed", type=_not_negative, default=1.0, help="1 is real time, 0 as fast as it goes (default: 1)")
    mic.add_argument("--json", action="store_true", help="print every event as a line of JSON")

    from export.default_recipe import DEFAULT_PRECISION

    pull = _add_command(commands, "pull", "download a checkpoint, or take a local one, and convert it", pull_command)
    add_pull_flags(pull, ["fp32", "int8", "int4"], DEFAULT_PRECISION)
    _add_setting_flags(pull, "cache_dir")

    models = _add_command(commands, "models", "list the models", models_command)
    _add_setting_flags(models, "cache_dir")

    show = _add_command(commands, "show", "describe a model: licences, sizes, prompt, memory", show_command)
    show.add_argument("bundle", nargs="?", metavar="NAME", help="a pulled model, `small`, `base`, `large`, `slm`, or a folder")
    _add_setting_flags(show, "cache_dir")

    remove = _add_command(commands, "remove", "delete pulled models", remove_command)
    remove.add_argument("names", nargs="+", metavar="NAME", help="a pulled model")
    _add_setting_flags(remove, "cache_dir")

    doctor = _add_command(commands, "doctor", "check this machine; exit status 1 if something is wrong", doctor_command)
    _add_setting_flags(doctor, "cache_dir", "slots", "device", *GPU_SETTINGS)
    _add_models_flag(doctor)

    _add_command(commands, "version", "print the version", version_command)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError
    return value


def _add_command(commands: Any, name: str, help_text: str, command: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    parser.set_defaults(command=command)
    return parser


def _add_models_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        "--bundle",
        dest="models",
        action="append",
        help=f"{Settings.model_fields['bundle'].description} Given again: a further model; the first is the default.",
    )


def _add_setting_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add flags for settings; a flag that is not given leaves the setting to the environment or its default."""
    for name in names:
        flag, help_text = "--" + name.replace("_", "-"), Settings.model_fields[name].description
        if name == "insecure":
            parser.add_argument(flag, action="store_true", default=None, help=help_text)
        elif name == "bundle":
            parser.add_argument("--model", flag, dest=name, default=None, help=help_text)
        else:
            parser.add_argument(flag, default=None, help=help_text)
