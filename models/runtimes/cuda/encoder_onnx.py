"""The speech encoder on ONNX Runtime's GPU provider."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from models.protocols import Float32
from models.runtimes.cuda.device import Device, DeviceError, Stream
from models.runtimes.cuda.onnx_session import open_device_session
from models.runtimes.cuda.utterances import FRAMES_PER_STATE, UtteranceLanes
from models.runtimes.onnx.session import tensor_shapes


class OnnxDeviceEncoder:
    """The `Encoder` protocol: one utterance a run, whose states [states, width] float32 stay on the device. For one thread.

    Raises `DeviceError` for audio longer than `largest_frames` of features, and where a run fails.
    """

    def __init__(self, graph: Path, device: Device, stream: Stream, *, largest_frames: int, threads: int) -> None:
        """`threads` is for what ONNX Runtime does on the CPU. Raises `DeviceError` where the graph does not run on the device."""
        self._device = device
        self._stream = stream
        self._session = open_device_session(graph, device, stream, threads)
        self.shapes = tensor_shapes(self._session)
        mel_bins, _ = self.shapes["features"]
        _, self._width = self.shapes["states"]
        self._lanes = UtteranceLanes(device, stream, mel_bins, 1, largest_frames)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        # Now ONNX Runtime takes all the memory that it will need: taking some holds up everything else on the GPU.
        self.encode([np.zeros((mel_bins, largest_frames), np.float32)])

    def encode(self, features: Sequence[Float32]) -> list[Tensor]:
        return self._lanes.run(features, self._enqueue)

    def _enqueue(self, features: Tensor) -> Tensor:
        states = self._device.empty((-(-features.shape[1] // FRAMES_PER_STATE), self._width), torch.float32)
        binding = self._session.io_binding()
        place = self._device.binding_device
        binding.bind_input("features", *place, np.float32, tuple(features.shape), features.data_ptr())
        binding.bind_output("states", *place, np.float32, tuple(states.shape), states.data_ptr())

        def work() -> None:
            try:
                self._session.run_with_iobinding(binding, self._options)
            except Exception as error:
                raise DeviceError(f"ONNX Runtime could not run the encoder: {error}") from error

        self._device.launch(work, self._stream)
        return states
