"""The T5 graphs compute what transformers computes, with padded rows, over slots, a token or several at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch

from models.graph.writer import GraphBuilder
from models.llms.t5 import build_t5_decoder, build_t5_encoder
from tests.support.tiny.tiny_t5 import VOCABULARY, tiny_t5

Array = npt.NDArray[Any]

POSITIONS, MAX_TOKENS = 32, 48
LENGTHS = [40, 17]
TOLERANCE = 1e-4


def session(graph: GraphBuilder, folder: Path) -> onnxruntime.InferenceSession:
    graph.save(folder / f"{graph.name}.onnx")
    return onnxruntime.InferenceSession(folder / f"{graph.name}.onnx", providers=["CPUExecutionProvider"])


class Slots:
    """Runs the decoder graph over slots, as an engine would."""

    def __init__(self, decoder: onnxruntime.InferenceSession, crossed: dict[str, Array], lengths: list[int]) -> None:
        self.decoder, self.crossed, self.lengths = decoder, crossed, lengths
        names = [value.name for value in decoder.get_inputs() if value.name.startswith(("key_", "value_"))]
        self.slots = {name: np.zeros((len(lengths), 4, POSITIONS, 16), np.float32) for name in names}
        self.names = [value.name for value in decoder.get_outputs()]

    def step(self, embeddings: Array, positions: list[int]) -> Array:
        """Logits [rows, tokens, vocabulary]."""
        rows, tokens, _ = embeddings.shape
        feeds = {
            "embeddings": embeddings,
            "positions": np.array(positions)[:, None] + np.arange(tokens),
            "write_index": np.array(positions),
            "wanted": np.array([(row, token) for row in range(rows) for token in range(tokens)]),
            "cross_length": np.array(self.lengths),
        }
        outputs = dict(zip(self.names, self.decoder.run(None, {**feeds, **self.slots, **self.crossed}), strict=True))
        self.slots = {name: outputs[name.replace("_", "_out_")] for name in self.slots}
        logits: Array = outputs["logits"].reshape(rows, tokens, VOCABULARY)
        return logits


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Slots, Array, Array]:
    """Our decoder over encoded rows, its tokens' embeddings [rows, tokens, D], and transformers' logits of those tokens."""
    folder = tmp_path_factory.mktemp("t5")
    ours, theirs = tiny_t5()
    generator = np.random.default_rng(0)
    source = generator.integers(0, VOCABULARY, (2, max(LENGTHS)))
    text = generator.integers(0, VOCABULARY, (2, 20))
    seen = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    with torch.inference_mode():
        inputs = {"input_ids": torch.from_numpy(source), "attention_mask": torch.from_numpy(seen)}
        expected = theirs(**inputs, decoder_input_ids=torch.from_numpy(text)).logits.numpy()
    table = ours.weights["shared.weight"]
    encoder = session(build_t5_encoder(ours, max_tokens=MAX_TOKENS), folder)
    crossed = encoder.run(None, {"embeddings": table[source], "length": np.array(LENGTHS)})
    names = [value.name for value in encoder.get_outputs()]
    decoder = session(build_t5_decoder(ours, max_positions=POSITIONS), folder)
    return Slots(decoder, dict(zip(names, crossed, strict=True)), LENGTHS), table[text], expected


def test_whole_texts_equal_transformers(model: tuple[Slots, Array, Array]) -> None:
    slots, embeddings, expected = model
    np.testing.assert_allclose(slots.step(embeddings, [0, 0]), expected, atol=TOLERANCE)


def test_a_token_at_a_time_equals_transformers_and_what_lies_beyond_is_not_seen(model: tuple[Slots, Array, Array]) -> None:
    slots, embeddings, expected = model
    slots.step(embeddings[:, ::-1], [5, 5])  # leaves other keys behind, in front of what is written now
    np.testing.assert_allclose(slots.step(embeddings[:, :4], [0, 0]), expected[:, :4], atol=TOLERANCE)
    for position in range(4, 20):
        logits = slots.step(embeddings[:, position : position + 1], [position, position])
        np.testing.assert_allclose(logits[:, 0], expected[:, position], atol=TOLERANCE)


def test_padding_of_the_source_reaches_nothing(model: tuple[Slots, Array, Array]) -> None:
    slots, embeddings, expected = model
    spoiled = {name: each.copy() for name, each in slots.crossed.items()}
    for each in spoiled.values():
        each[1, :, LENGTHS[1] :] = 1e4
    again = Slots(slots.decoder, spoiled, LENGTHS)
    np.testing.assert_allclose(again.step(embeddings, [0, 0]), expected, atol=TOLERANCE)
