"""Self-speculation: a draft is proposed to a decoder, which accepts the tokens that it would have chosen.

The draft is verified in passes that run anyway: the prefill takes it along after the prompt, and after a mismatch each decode
pass takes the next few tokens along. (arXiv 2603.11243 verifies once; drafting again after a mismatch saves most of the passes
that are left.) How long the proposals are depends on nothing but the answer so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cachetools import LRUCache

# Tokens verified after the prompt. One more costs a twentieth of a pass; those after the end of the answer are wasted.
FIRST_PROPOSAL = 48
# Tokens proposed after a mismatch, at first and at most.
NEXT_PROPOSAL = 8
LONGEST_NEXT_PROPOSAL = 16
# A drafted token costs about a twentieth of the pass that an accepted one saves, so twice that share certainly pays. Even long
# drafts that pay well have a low share, because all tokens after the first mismatch count as drafted.
MIN_ACCEPTANCE = 0.1
# Tokens of the draft among which the LLM's own token is searched.
REALIGN_WINDOW = 3


class ProposalLength:
    """How many tokens to propose: many at first, then fewer or more by what became of the last proposal."""

    def __init__(self) -> None:
        self.limit = FIRST_PROPOSAL

    def learn(self, proposed: int, accepted: int) -> None:
        """Adapt to a proposal: of `proposed` tokens, `accepted` were right."""
        if self.limit == FIRST_PROPOSAL:
            self.limit = NEXT_PROPOSAL
        elif accepted == 0:
            self.limit //= 2
        elif accepted == proposed:
            self.limit = min(2 * self.limit, LONGEST_NEXT_PROPOSAL)


class Draft(Protocol):
    """The draft of one request, and the place of the answer in it, which depends on nothing but the answer's own tokens."""

    @property
    def next(self) -> int | None:
        """The token that the draft has at this place, None after its end."""
        ...

    @property
    def overrun(self) -> int:
        """How many tokens the answer is longer than the draft; 0 without a draft."""
        ...

    def propose(self, room: int) -> tuple[int, ...]:
        """Return the tokens that probably come next, at most `room` of them."""
        ...

    def expects(self, token: int) -> bool:
        """Return whether a token moves the place on wherever the answer stands."""
        ...

    def advance(self, token: int) -> None:
        """Move on by a token of the answer."""
        ...

    def learn(self, proposed: int, accepted: int) -> None:
        """Adapt the length of the next proposals: of `proposed` tokens, `accepted` were right."""
        ...


class TokenDraft:
    """A draft in the decoder's own tokens, realigned token by token."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tuple(tokens)
        self._position = 0
        self._length = ProposalLength()

    @property
    def next(self) -> int | None:
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    @property
    def overrun(self) -> int:
        return max(0, self._position - len(self._tokens)) if self._tokens else 0

    def propose(self, room: int) -> tuple[int, ...]:
        return self._tokens[self._position : self._position + max(0, min(self._length.limit, room))]

    def expects(self, token: int) -> bool:
        return token in self._window

    def advance(self, token: int) -> None:
        """Move on to after the token if it is expected, and else past one token of the draft."""
        self._position += (self._window.index(token) if self.expects(token) else 0) + 1

    @property
    def _window(self) -> tuple[int, ...]:
        return self._tokens[self._position : self._position + REALIGN_WINDOW]

    def learn(self, proposed: int, accepted: int) -> None:
        self._length.learn(proposed, accepted)


@dataclass
class _Record:
    drafted: float = 0.0
    accepted: float = 0.0
    skipped: int = 0


class DraftGate:
    """Learns for which instructions drafts help, and turns them off for the others, except for a probe now and then.

    This never changes an answer, only its cost.
    """

    def __init__(
        self, min_acceptance: float = MIN_ACCEPTANCE, min_drafted: int = 128, probe_every: int = 32, instructions: int = 1024
    ) -> None:
        self._min_acceptance = min_acceptance
        self._min_drafted = min_drafted
        self._probe_every = probe_every
        self._records: LRUCache[str, _Record] = LRUCache(instructions)

    def allows(self, instruction: str) -> bool:
        """Return whether a request with this instruction should have a draft."""
        record = self._records.get(instruction)
        if record is None or record.drafted < self._min_drafted or record.accepted >= self._min_acceptance * record.drafted:
            return True
        record.skipped = (record.skipped + 1) % self._probe_every
        return record.skipped == 0

    def record(self, instruction: str, drafted: int, accepted: int) -> None:
        """Add the result of one proposal. Older ones count for less and less."""
        record = self._records.setdefault(instruction, _Record())
        if record.drafted > 8 * self._min_drafted:
            record.drafted, record.accepted = record.drafted / 2, record.accepted / 2
        record.drafted += drafted
        record.accepted += accepted
