"""Utterances on their way through an encoder: features to the device, one run each, states that stay there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from models.protocols import Float32
from models.runtimes.cuda.device import Device, DeviceError, Stream, copy

FRAMES_PER_STATE = 2
"""Mel frames that become one state."""
LANES = 4
"""Utterances in flight: while the device encodes one, the host lays out the next."""


@contextmanager
def settling(stream: Stream) -> Iterator[None]:
    """Wait at the end for all that was enqueued, also after an error: no memory is written to that work still reads."""
    try:
        yield
    finally:
        stream.synchronize()


class UtteranceLanes:
    """Memory for the features of a few utterances, used again and again. For one thread."""

    def __init__(self, device: Device, stream: Stream, mel_bins: int, smallest_frames: int, largest_frames: int) -> None:
        self._device = device
        self._stream = stream
        self._mel_bins = mel_bins
        self._smallest_frames, self._largest_frames = smallest_frames, largest_frames
        size = (mel_bins * largest_frames,)
        self._lanes = [(device.staging(size, torch.float32), device.empty(size, torch.float32)) for _ in range(LANES)]

    def run(self, features: Sequence[Float32], enqueue: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return for each utterance the result of `enqueue`, which puts a run on features [mel_bins, frames] onto the stream.

        Returns when all is done. Raises `DeviceError` where an utterance is too short or too long, or a run fails.
        """
        for each in features:
            self._check(each)
        results = []
        for first in range(0, len(features), LANES):
            with settling(self._stream):
                for each, lane in zip(features[first:], self._lanes, strict=False):
                    results.append(enqueue(self._send(each, *lane)))
        return results

    def _check(self, features: Float32) -> None:
        bins, frames = features.shape
        if bins != self._mel_bins:
            raise ValueError(f"features have {bins} bins, not {self._mel_bins}")
        if not self._smallest_frames <= frames <= self._largest_frames:
            raise DeviceError(
                f"The encoder takes {self._smallest_frames} to {self._largest_frames} frames of features (100 a second), "
                f"not {frames}."
            )

    def _send(self, features: Float32, staged: Tensor, sent: Tensor) -> Tensor:
        staged[: features.size].view(features.shape).numpy()[...] = features
        copy(self._device, sent[: features.size], staged[: features.size], self._stream)
        return sent[: features.size].view(features.shape)
