"""Rotate the residual stream of Whisper's encoder, as `export.rotation` does for the LLM: the same states, but no channel
of the layers' inputs is far larger than the rest, which rounding to 8 bits by rows needs.

The rotation leaves the mean of a state where it is, so layer normalisation commutes with it once gains and biases are in the
products that read its result.
"""

import numpy as np
import numpy.typing as npt

from export.ctranslate2_weights import Arrays
from export.rotation import random_rotation

Float64 = npt.NDArray[np.float64]

INTO_STREAM = "encoder/into_stream/weight"
"""[width, width]: rotates what the convolutions give, before positions are added."""
OUT_OF_STREAM = "encoder/out_of_stream/weight"
"""[width, width]: turns the last normalisation's result back; the normalisation's own gain and bias come after it."""


def mean_preserving_rotation(size: int) -> Float64:
    """An orthogonal matrix [size, size] that maps the vector of ones to itself."""
    basis = np.linalg.qr(np.concatenate([np.ones((size, 1)), np.eye(size)[:, 1:]], axis=1))[0]
    inner = np.eye(size)
    inner[1:, 1:] = random_rotation(size - 1)
    rotation: Float64 = basis @ inner @ basis.T
    return rotation


def rotated_encoder(arrays: Arrays) -> Arrays:
    """Weights, as `read_ctranslate2` gives them, of an encoder that computes the same."""
    weights = {name: np.asarray(array, np.float64) for name, array in arrays.items() if name.startswith("encoder/")}
    rotation = mean_preserving_rotation(len(weights["encoder/layer_norm/gamma"]))
    weights["encoder/position_encodings/encodings"] = weights["encoder/position_encodings/encodings"] @ rotation.T
    for name in [
        name for name in weights if name.endswith("/layer_norm/gamma") and "/layer_" in name[: -len("/layer_norm/gamma")]
    ]:
        part = name.removesuffix("/layer_norm/gamma")
        gain, bias = weights[name], weights[f"{part}/layer_norm/beta"]
        read = weights[f"{part}/linear_0/weight"]
        weights[f"{part}/linear_0/bias"] = weights[f"{part}/linear_0/bias"] + read @ bias
        weights[f"{part}/linear_0/weight"] = read * gain @ rotation.T
        weights[name], weights[f"{part}/layer_norm/beta"] = np.ones_like(gain), np.zeros_like(bias)
        weights[f"{part}/linear_1/weight"] = rotation @ weights[f"{part}/linear_1/weight"]
        weights[f"{part}/linear_1/bias"] = rotation @ weights[f"{part}/linear_1/bias"]
    weights[INTO_STREAM], weights[OUT_OF_STREAM] = rotation, rotation.T
    return {name: np.asarray(array, np.float32, order="C") for name, array in weights.items()}
