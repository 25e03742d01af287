"""The place of a projector in a chain without an LLM: the speech decoder reads the encoder's states themselves."""

from collections.abc import Sequence

import numpy as np

from models.protocols import EncoderStates, Float32, ProjectorOutput


class NoProjector:
    """Implements `models.protocols.Projector`: a frame without numbers for each state, no draft and no boundary vectors."""

    boundary_before: Float32 = np.empty((0, 0), np.float32)
    boundary_after: Float32 = np.empty((0, 0), np.float32)

    def project(self, states: Sequence[EncoderStates]) -> list[ProjectorOutput]:
        return [ProjectorOutput(np.empty((len(each), 0), np.float32)) for each in states]
