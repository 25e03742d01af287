"""The optimisation profiles of each part's plan: ranges of the free dimensions of its graph, by their names."""

from collections.abc import Sequence
from dataclasses import dataclass

from export.tensorrt_build import Profile


@dataclass(frozen=True)
class Limits:
    """The largest step that a plan takes. A decode step is one new position per row; whatever has more is a prefill.

    `wanted` positions of a prefill have logits: a draft's are all wanted.
    """

    decode_rows: int = 32
    prefill_rows: int = 4
    prefill_tokens: int = 512
    wanted: int = 256
    audio_frames: int = 3000


def decoder_profiles(limits: Limits) -> list[Profile]:
    """Return the profiles of `models.llms.llama`, in the order of `models.bundle.plans`: decode, prefill."""
    rows = (1, min(8, limits.decode_rows), limits.decode_rows)
    return [
        {"rows": rows, "tokens": (1, 1, 1), "wanted": rows},
        {
            "rows": (1, 1, limits.prefill_rows),
            "tokens": (1, min(128, limits.prefill_tokens), limits.prefill_tokens),
            "wanted": (1, 1, limits.wanted),
        },
    ]


def speech_encoder_profiles(limits: Limits, silent_frames: int = 0) -> list[Profile]:
    """Return the profiles of `models.encoders.whisper`: one utterance, at its own length, and `silent_frames` behind it."""
    least, most = 2 + silent_frames, limits.audio_frames + silent_frames
    return [{"frames": (least, min(500, most), most)}]


def adapter_profiles(limits: Limits, subsampling: int) -> Sequence[Profile]:
    """Return the profiles of `models.projectors.subsample_ctc`; the encoder gives a state per two frames of audio."""
    states = limits.audio_frames // 2 // subsampling * subsampling
    return [{"states": (subsampling, min(subsampling * 62, states), states)}]
