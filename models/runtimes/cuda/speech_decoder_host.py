"""The speech decoder beside a GPU: it runs on the CPU, and reads the encoder's states from the device's memory."""

from pathlib import Path

import torch

from models.protocols import EncoderStates
from models.runtimes.cuda.device import Device, copy
from models.runtimes.cuda.utterances import settling
from models.runtimes.onnx.speech_decoder import OnnxSpeechDecoder


class HostSpeechDecoder(OnnxSpeechDecoder):
    """Implements `models.protocols.SpeechDecoder` for states that lie on a device. For one thread, which may be the LLM's.

    The copies have a stream of their own, so that they wait for neither the encoder nor the LLM. States are finished when an
    encoder returns them.
    """

    def __init__(
        self, device: Device, graph: Path, memory: Path, embeddings: Path, *, max_states: int, slots: int = 8, threads: int = 2
    ) -> None:
        super().__init__(graph, memory, embeddings, max_states=max_states, slots=slots, threads=threads)
        self._device = device
        self._stream = device.stream()
        self._staged = device.staging((self._cross.max_states, self.embedding_size), torch.float32)

    def write_memory(self, slot: int, states: EncoderStates) -> None:
        """Write the keys and values of an utterance's states, a tensor [states, width] of the device, to a slot."""
        self._cross.require_room(len(states))
        staged = self._staged[: len(states)]
        with settling(self._stream):
            copy(self._device, staged, states, self._stream)
        super().write_memory(slot, staged.numpy())
