"""The projector of a published model with a CTC head for the LLM's tokens: frames, and a draft with frames of its own."""

from collections.abc import Sequence

import numpy as np

from models.ctc import NO_TOKEN
from models.protocols import CtcDraft, Float32, Int64, ProjectorOutput
from models.runtimes.onnx.frame_projector import OnnxFrameProjector

OUTPUTS = ["frames", "blank_probability", "top_tokens", "top_probabilities"]


class OnnxDraftingProjector(OnnxFrameProjector):
    """Implements `models.protocols.Projector`, one utterance a run, without boundary vectors."""

    def project(self, states: Sequence[Float32]) -> list[ProjectorOutput]:
        return [self._project_one(each) for each in states]

    def _project_one(self, states: Float32) -> ProjectorOutput:
        frames, blank, tokens, probabilities = self._session.run(OUTPUTS, {"states": states})
        return ProjectorOutput(frames, read_draft(blank, tokens, probabilities))


def read_draft(blank: Float32, tokens: Int64, probabilities: Float32) -> CtcDraft:
    """Return the draft of blank [frames], tokens and probabilities [frames, K], best first; the blank wins if it is likelier."""
    spoken = probabilities[:, 0] > blank
    kept = np.flatnonzero(spoken).astype(np.int64)
    best = np.where(spoken, tokens[:, 0], NO_TOKEN).astype(np.int64)
    chosen = np.where(spoken, probabilities[:, 0], 0).astype(np.float32)
    given = (probabilities[kept] / np.maximum(1 - blank[kept], np.finfo(np.float32).tiny)[:, None]).astype(np.float32)
    return CtcDraft(best, chosen, blank, kept, tokens[kept], given)
