"""The commands about models: `thinbridge pull | models | show | remove`."""

import argparse
import json
import sys
from pathlib import Path

from export.checkpoints.hub import Hub
from export.default_recipe import RECIPES, VOICE
from export.fetch import FetchError, fetch_wheel
from export.store import Store, folder_bytes
from models.bundle.io import Bundle, BundleError, open_bundle
from models.bundle.memory import slot_bytes
from models.bundle.schema import Manifest
from models.projectors.ctc_head import CtcHeadSection
from models.text.tokeniser import Tokeniser
from server.settings import Settings


def model_store(settings: Settings) -> Store:
    """Return the store of pulled models."""
    return Store(settings.cache_dir / "models")


def pull_command(options: argparse.Namespace, settings: Settings) -> int:
    """Pull a checkpoint into the store."""
    from export.checkpoints.conversion import PullOptions
    from export.pull import pull_model

    hub = Hub(settings.cache_dir / "checkpoints", options.hub)
    wanted = PullOptions(
        precision=options.precision,
        condenses_silence=options.condense_silence,
        name=options.name,
        adapter=options.adapter,
    )
    bundle = pull_model(
        options.model, wanted, hub, model_store(settings), lambda path: _write_voice(settings, path), llm=options.llm
    )
    print("\n".join(describe_bundle(bundle)))
    print(f"\nServe it with `thinbridge serve --model {bundle.manifest.name}`.")
    return 0


def models_command(_options: argparse.Namespace, settings: Settings) -> int:
    """List the models: those that were pulled, and those that a server builds by itself."""
    store = model_store(settings)
    for name in store.names():
        try:
            print(_summary(name, store.require(name)))
        except BundleError as error:
            print(f"{name:40} cannot be used: {error.file} {error.problem}")
    for name, recipe in RECIPES.items():
        built = [path for path in settings.cache_dir.glob(f"{recipe.name}-*/bundle.json") if ".partial" not in str(path)]
        print(f"{name:40} {recipe.name}, {'built' if built else 'built when it is first served'}")
    return 0


def show_command(_options: argparse.Namespace, settings: Settings) -> int:
    """Describe one model, after checking every hash."""
    from server.cli import CommandError, find_bundle

    folder = find_bundle(settings)
    if not folder.exists():
        raise CommandError(f"There is no bundle at {folder} yet; `thinbridge serve` builds the default one.")
    print("\n".join(describe_bundle(open_bundle(folder))))
    return 0


def remove_command(options: argparse.Namespace, settings: Settings) -> int:
    """Delete a pulled model."""
    for name in options.names:
        print(f"{name} is removed, {model_store(settings).remove(name) / 1e6:.0f} MB")
    return 0


def add_pull_flags(parser: argparse.ArgumentParser, precisions: list[str], default: str) -> None:
    """Add the arguments of `pull`."""
    parser.add_argument("model", metavar="NAME", help="hub id such as openai/whisper-small, a local folder, or a .nemo file")
    parser.add_argument("--llm", metavar="NAME", help="an LLM that answers about the transcripts of a Whisper")
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="FILE",
        help="adapter.safetensors: the LLM hears the speech through this, not a transcript",
    )
    parser.add_argument("--name", help="name in the store (default: after the checkpoint)")
    parser.add_argument("--precision", choices=precisions, default=default, help="of the weights (default: %(default)s)")
    parser.add_argument(
        "--condense-silence",
        action="store_true",
        help="Whisper hears the silence behind short audio for a part of the time; a few transcripts differ",
    )
    parser.add_argument("--hub", metavar="URL", help="address of the hub (default: HF_ENDPOINT, or the public one)")


def describe_bundle(bundle: Bundle) -> list[str]:
    """Return the lines that describe a bundle."""
    manifest = bundle.manifest
    encoder, projector, llm, speech = manifest.encoder, manifest.projector, manifest.llm, manifest.speech_decoder
    lines = [
        f"{manifest.name}  {bundle.folder}",
        f"  created   {manifest.created:%Y-%m-%d %H:%M}, every sha256 right",
        f"  size      {folder_bytes(bundle.folder) / 1e6:.0f} MB, and {slot_bytes(manifest) / 1e6:.1f} MB a slot",
        f"  audio     {manifest.sample_rate_hz} Hz, up to {manifest.max_audio_s:g} s at once",
        f"  encoder   {encoder.architecture}, {encoder.precision}, width {encoder.width}",
    ]
    if speech:
        tokens = speech.tokens
        spoken = f"{len(tokens.languages)} languages" if tokens.multilingual else "English only"
        lines.append(f"  speech    {speech.architecture} decoder, {speech.precision}, {speech.layers} layers, {spoken}")
    if isinstance(projector, CtcHeadSection):
        lines.append(f"  ctc head  {projector.precision}, {projector.vocabulary_size - 1} tokens, writes the transcript")
    elif projector:
        lines.append(f"  adapter   {projector.precision}, {projector.subsampling}x subsampling, to {projector.embedding_size}")
    if llm:
        lines.append(f"  llm       {llm.architecture}, {llm.precision}, {llm.layers} layers, vocabulary {llm.vocabulary_size}")
        lines.append(f"  prompt    {prompt_text(bundle)}")
        if transcripts := manifest.transcripts:
            lines.append(f"  answers   transcripts only, in {len(transcripts.languages)} languages")
    else:
        lines.append("  llm       none: it transcribes" + (" and translates into English" if _translates(manifest) else ""))
    lines.append(f"  exact     {exactness(manifest)}")
    lines.append(f"  live      {live_cost(manifest)}")
    lines += [f"  licence   {part}: {licence}" for part, licence in sorted(manifest.licences.items())]
    lines += [f"  file      {name}, {entry.bytes / 1e6:.1f} MB" for name, entry in sorted(manifest.files.items())]
    return lines


def exactness(manifest: Manifest) -> str:
    """Say which promises the bundle's precision keeps."""
    decoder = manifest.llm or manifest.speech_decoder
    if decoder is None:
        rounded = "the checkpoint's own numbers" if manifest.encoder.precision == "fp32" else "rounded weights"
        return f"load and batching change no bit of an answer; {rounded}"
    if decoder.precision == "fp32":
        return "the checkpoint's own numbers; beside other requests the last bits differ, so a tie may be decided otherwise"
    return "load, batching, drafts and preemption change no bit of an answer; rounded weights may change the checkpoint's words"


def live_cost(manifest: Manifest) -> str:
    """Say how a live session's partial text is made, and what that computes again."""
    if manifest.projector is not None and manifest.projector.drafts:
        return "partials come from the CTC scores of an utterance's last 8 s, and the answer encodes all of it"
    again = "the whole utterance again"
    if manifest.encoder.window_s is not None:
        again = f"an utterance again but for what is finished, in windows of {manifest.encoder.window_s:g} s"
    return f"each partial encodes and reads {again}, and verifies the one before it; at most a third of the time"


def prompt_text(bundle: Bundle) -> str:
    """Return the LLM's prompt as text, with its parts in braces."""
    prompt, llm = bundle.manifest.prompt, bundle.manifest.llm
    if prompt is None or llm is None:
        return "none"
    tokeniser = Tokeniser.from_file(bundle.path(llm.tokeniser))
    names = {id: name for name, id in tokeniser.special_tokens.items()}

    def text(ids: tuple[int, ...]) -> str:
        return "".join(names.get(id) or tokeniser.decode([id]) for id in ids)

    speech = "{transcript}" if bundle.manifest.bridge == "transcript" else "{speech}"
    asked = f"{{{'instruction' if bundle.manifest.transcripts is None else 'context'}}}{text(prompt.after_instruction)}"
    whole = f"{asked}{speech}" if prompt.after_speech is None else f"{speech}{text(prompt.after_speech)}{asked}"
    return json.dumps(f"{text(prompt.prefix)}{whole}{text(prompt.suffix)}")


def _translates(manifest: Manifest) -> bool:
    return manifest.speech_decoder is not None and len(manifest.speech_decoder.translation_instructions) > 0


def _summary(name: str, folder: Path) -> str:
    manifest = Manifest.model_validate_json((folder / "bundle.json").read_text(encoding="utf-8"))
    parts = [manifest.encoder.architecture, *([manifest.llm.architecture] if manifest.llm else [])]
    decoder = manifest.llm or manifest.speech_decoder
    precision = manifest.encoder.precision if decoder is None else decoder.precision
    return f"{name:40} {' + '.join(parts)}, {precision}, {folder_bytes(folder) / 1e6:.0f} MB"


def _write_voice(settings: Settings, target: Path) -> None:
    """Unpack the voice detector's graph from its pinned wheel. Raises `FetchError`."""
    from export.conversion import VOICE_MEMBER, unpack
    from export.default_recipe import WHEELS

    (wheel,) = (each for each in WHEELS if each.project == VOICE)
    if not (settings.cache_dir / "wheels" / wheel.file).exists():
        print(
            f"Getting the voice detector, which every model needs ({wheel.bytes / 1e6:.0f} MB, once)", file=sys.stderr, flush=True
        )
    try:
        unpack(fetch_wheel(wheel, settings.cache_dir / "wheels"), VOICE_MEMBER, target)
    except FetchError as error:
        print(f"The voice detector, which every model needs, cannot be had: {error}", file=sys.stderr)
        raise
