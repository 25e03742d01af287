"""Merges of vocabularies that list tokens in the order in which they are made, and not of what."""

from collections.abc import Mapping, Sequence


def list_merges(ordered: Sequence[str], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the pairs of tokens that make up each token, in the order of the tokens; pairs of earlier parts come first."""
    merges = []
    for token in ordered:
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges
