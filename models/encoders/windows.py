"""Encode speech window by window, where an encoder's windows do not see each other: one that is finished is encoded once."""

import hashlib
from dataclasses import dataclass

import numpy as np

from models.protocols import Encoder, EncoderStates, Float32

KeptWindows = dict[bytes, EncoderStates]
"""The states of whole windows, by the digests of their features."""


@dataclass(frozen=True)
class SpeechWindow:
    """A window of an encoder: `features` frames of features, of which the projector makes `frames` frames."""

    features: int
    frames: int

    def encode(self, encoder: Encoder, features: Float32, kept: KeptWindows) -> EncoderStates:
        """Return the states [states, width] of an utterance's features [bins, frames].

        Each window is a run of its own: its states have the same bits in every utterance that holds its features. Whole windows
        are found in `kept`, which holds those of this utterance afterwards.
        """
        starts = range(0, features.shape[1], self.features)
        windows = [np.ascontiguousarray(features[:, start : start + self.features]) for start in starts]
        found: KeptWindows = {}
        states = []
        for window in windows:
            is_whole = window.shape[1] == self.features
            digest = hashlib.sha256(window.tobytes()).digest() if is_whole else b""
            encoded = kept.get(digest)
            if encoded is None:
                (encoded,) = encoder.encode([window])
            if is_whole:
                found[digest] = kept[digest] = encoded
            states.append(encoded)
        kept.clear()
        kept.update(found)
        return np.concatenate(states)
