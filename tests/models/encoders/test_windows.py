"""Windows that do not see each other: whole ones are encoded once while an utterance goes on, and anew from other features."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.encoders.windows import KeptWindows, SpeechWindow
from models.protocols import Float32

WINDOW = SpeechWindow(features=8, frames=4)


class Doubling:
    """Gives every second frame twice as large, and remembers how long its inputs were."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def encode(self, features: Sequence[Float32]) -> list[Float32]:
        self.lengths += [each.shape[1] for each in features]
        return [2 * each.T[::2] for each in features]


def features(frames: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).normal(size=(3, 64)).astype(np.float32)[:, :frames]


def test_whole_windows_are_encoded_once() -> None:
    encoder, kept = Doubling(), KeptWindows()
    for frames in (5, 8, 13, 20):
        np.testing.assert_array_equal(WINDOW.encode(encoder, features(frames), kept), 2 * features(frames).T[::2])
    assert encoder.lengths == [5, 8, 5, 8, 4]
    assert len(kept) == 2


def test_a_window_that_changed_is_encoded_again_and_its_old_states_are_let_go_of() -> None:
    encoder, kept = Doubling(), KeptWindows()
    WINDOW.encode(encoder, features(16), kept)
    changed = features(16)
    changed[0, 3] += 1
    np.testing.assert_array_equal(WINDOW.encode(encoder, changed, kept), 2 * changed.T[::2])
    assert encoder.lengths == [8, 8, 8]
    assert len(kept) == 2


@given(st.lists(st.integers(1, 64), min_size=1, max_size=6), st.integers(0, 3))
def test_what_is_kept_changes_no_bit(lengths: list[int], seed: int) -> None:
    kept = KeptWindows()
    for frames in lengths:
        alone = WINDOW.encode(Doubling(), features(frames, seed), KeptWindows())
        np.testing.assert_array_equal(WINDOW.encode(Doubling(), features(frames, seed), kept), alone)
