"""The answer of a model without a decoder: the best path of its CTC head."""

import math

import numpy as np

from models.ctc import Run, find_runs
from models.protocols import CtcDraft
from models.text.tokeniser import Tokeniser
from server.engine.runner.sequence import SequenceState
from server.engine.types.events import TokenLogprob


def write_answer(sequence: SequenceState, draft: CtcDraft, tokeniser: Tokeniser) -> None:
    """Answer a sequence with the tokens of the path, up to its `max_tokens` or a stop string."""
    sequence.audio_frames = len(draft.best_token)
    wanted = sequence.request.task.sampling.logprobs
    for run in find_runs(draft.best_token):
        if wanted is not None:
            sequence.logprobs.append(read_logprob(draft, run, wanted, tokeniser))
        sequence.append(run.token)
        if sequence.finished:
            return
    sequence.finish("stop")


def read_logprob(draft: CtcDraft, run: Run, alternatives: int, tokeniser: Tokeniser) -> TokenLogprob:
    """Return the log-probability of a run's token in its likeliest frame, with the best tokens there; the blank is none."""
    frame = run.first + int(draft.probability[run.first : run.last + 1].argmax())
    place = int(np.searchsorted(draft.kept, frame))
    logarithms = np.log(np.maximum(draft.top_probabilities[place] * (1 - draft.blank_probability[frame]), 1e-30))
    tokens = map(tokeniser.token_bytes, draft.top_tokens[place, :alternatives].tolist())
    top = tuple(zip(tokens, logarithms[:alternatives].tolist(), strict=True))
    return TokenLogprob(tokeniser.token_bytes(run.token), math.log(max(float(draft.probability[frame]), 1e-30)), top)
