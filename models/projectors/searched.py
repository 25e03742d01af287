"""A projector whose draft is searched again with the LLM that reads its frames."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.bundle.sections import SearchSection
from models.protocols import LLM, EncoderStates, Projector, ProjectorOutput
from models.text.ctc_prefix import CtcScores
from models.text.joint_search import JointSearch


class SearchedProjector:
    """Implements `models.protocols.Projector`: the draft becomes the transcript that a joint search finds among its scores.

    The frames are the embeddings of that transcript's tokens.
    """

    def __init__(self, projector: Projector, section: SearchSection, llm: LLM) -> None:
        """`llm` has slots that nothing else uses, as many as the search keeps hypotheses."""
        self.boundary_before, self.boundary_after = projector.boundary_before, projector.boundary_after
        self._projector = projector
        self._search = JointSearch(
            llm, section.context, section.end_token, section.ctc_weight, section.token_bonus, section.margin
        )

    def project(self, states: Sequence[EncoderStates]) -> list[ProjectorOutput]:
        """Return one output per utterance, of which each is searched by itself. Raises `BackendError`."""
        return [self._search_output(output) for output in self._projector.project(states)]

    def _search_output(self, output: ProjectorOutput) -> ProjectorOutput:
        draft = output.require_draft()
        scores = CtcScores.of_draft(draft)
        tokens = self._search.find_transcript(scores)
        path, probability = scores.best_path(np.array(tokens, np.int64))
        searched = replace(draft, best_token=path, probability=probability)
        return replace(output, embeddings=self._search.llm.embed(tokens), draft=searched)
