"""The parts that models are made of, by the names that bundles use. A module is imported when its part is first looked up.

A new family is one module and one line here.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

ENCODERS = {
    "whisper": "models.encoders.whisper:WhisperSection",
    "granite": "models.encoders.granite:GraniteSection",
    "qwen3_asr": "models.encoders.qwen3_asr:Qwen3AsrSection",
    "w2v_bert": "models.encoders.w2v_bert:W2vBertSection",
    "fast_conformer": "models.encoders.fast_conformer:FastConformerSection",
}
PROJECTORS = {
    "subsample": "models.projectors.subsample:SubsampleSection",
    "subsample_ctc": "models.projectors.subsample_ctc:SubsampleCtcSection",
    "ultravox": "models.projectors.ultravox:UltravoxSection",
    "voxtral": "models.projectors.voxtral:VoxtralSection",
    "linear": "models.projectors.linear:LinearSection",
    "ctc_head": "models.projectors.ctc_head:CtcHeadSection",
    "qformer": "models.projectors.qformer:QformerSection",
    "qformer_ctc": "models.projectors.qformer:QformerCtcSection",
    "two_layers": "models.projectors.two_layers:TwoLayersSection",
}
SPEECH_DECODERS = {"whisper": "models.speech_decoders.whisper:WhisperDecoderSection"}
LLMS = {"llama": "models.llms.llama:LlamaSection", "t5": "models.llms.t5:T5Section"}
"""The families' sections of `bundle.json` (`models.bundle.sections.ModelSection`)."""
FEATURES = {
    "log_mel": "models.features.log_mel:LogMel",
    "whole_frames": "models.features.log_mel:WholeFrames",
    "granite_mel": "models.features.granite_mel:GraniteMel",
    "kaldi_fbank": "models.features.kaldi_fbank:KaldiFbank",
    "nemo_mel": "models.features.nemo_mel:NemoMel",
}
"""Front ends (`models.protocols.Features`)."""
VADS = {"silero": "models.vad.silero:OnnxVoiceDetector"}
"""Voice detectors, made of a graph and the samples of a window."""


class UnknownNameError(ValueError):
    """The registry has no part of that name. The message lists the names that it has."""


def require_known(parts: Mapping[str, str], name: str) -> None:
    """Raise `UnknownNameError` unless `parts` has the name."""
    if name not in parts:
        raise UnknownNameError(f"unknown {name!r}, this release knows {', '.join(sorted(parts))}")


def look_up(parts: Mapping[str, str], name: str) -> Any:
    """Import and return the part of that name. Raises `UnknownNameError`."""
    require_known(parts, name)
    return import_by_name(parts[name])


def import_by_name(place: str) -> Any:
    """Import and return what a string `module:attribute` names."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
