"""A GPU is lost to its process after an error that CUDA does not forget: no caller waits, and the process is replaced."""

import threading
from collections.abc import Iterator, Mapping
from unittest import mock

import numpy as np
import pytest

from models.bundle.io import Bundle
from models.features.log_mel import SAMPLE_RATE_HZ
from models.runtimes.cuda.chain import load_models_on
from models.runtimes.cuda.device import DeviceError, DeviceLostError
from server.engine.engine import LocalEngine
from server.engine.ipc.client import ProcessEngine
from server.engine.types.events import Delta, Event
from server.engine.types.options import SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from server.errors import EngineFailed
from tests.support.clients.engine_call import TIMEOUT_S, Call, wait_until
from tests.support.fakes import engine_children
from tests.support.fakes.fake_models import Trouble, speech
from tests.support.simulated_gpu.device import SimulatedDevice
from tests.support.simulated_gpu.plan import Shape, SimulatedPlan
from tests.support.tiny.tiny_bundle import MAX_AUDIO_S

REASON = "an illegal memory access was encountered"


@pytest.fixture
def device() -> SimulatedDevice:
    return SimulatedDevice(2**30, threads=1)


@pytest.fixture
def engine(device: SimulatedDevice, bundle: Bundle) -> Iterator[LocalEngine]:
    models = load_models_on(device, bundle, 2, 1, "tensorrt", "tensorrt")
    engine = LocalEngine(models, SAMPLE_RATE_HZ, MAX_AUDIO_S, queue_limit=4)
    engine.start()
    yield engine
    engine.drain(1)


def asked(id: str) -> InstructRequest:
    audio = np.random.default_rng(0).normal(0, 0.1, 2 * SAMPLE_RATE_HZ).astype(np.float32)
    return InstructRequest(id, audio, SpeechTask("Answer.", SamplingOptions(max_tokens=40), draft="off"))


def test_a_lost_device_fails_all_work_and_says_so() -> None:
    device = SimulatedDevice(2**20)
    device.check()
    device.lose(REASON)
    stream = device.stream()
    device.launch(lambda: None, stream)
    with pytest.raises(DeviceError, match=REASON):
        stream.synchronize()
    with pytest.raises(DeviceLostError, match=f"lost to this process: {REASON}"):
        device.check()


def test_an_engine_whose_gpu_is_lost_before_a_request_is_not_ready_any_more(device: SimulatedDevice, engine: LocalEngine) -> None:
    assert Call(engine, asked("before")).done().text
    device.lose(REASON)
    assert isinstance(Call(engine, asked("after")).error(), EngineFailed)
    wait_until(lambda: not engine.stats().ready)


def test_an_engine_whose_gpu_is_lost_during_answers_fails_them_and_is_not_ready_any_more(
    device: SimulatedDevice, engine: LocalEngine
) -> None:
    def lose(event: Event) -> None:
        if isinstance(event, Delta):
            device.lose(REASON)

    # The engine waits for all three: one that asks a dead engine would be told that it is not ready.
    all_asked = threading.Event()
    run = SimulatedPlan.run

    def run_after_all_asked(plan: SimulatedPlan, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        assert all_asked.wait(TIMEOUT_S)
        run(plan, shapes, addresses)

    with mock.patch.object(SimulatedPlan, "run", run_after_all_asked):
        calls = [Call(engine, asked(id), lose) for id in "abc"]
        all_asked.set()
    assert [type(call.error()) for call in calls] == [EngineFailed] * 3
    wait_until(lambda: not engine.stats().ready)


def test_any_other_failure_is_one_requests_own(engine: LocalEngine) -> None:
    with mock.patch.object(SimulatedPlan, "run", side_effect=RuntimeError("no such kernel")):
        assert isinstance(Call(engine, asked("unlucky")).error(), EngineFailed)
    assert engine.stats().ready
    assert Call(engine, asked("next")).done().text


def test_its_process_is_replaced_and_goes_on() -> None:
    factory = f"{engine_children.__name__}:{engine_children.losing.__name__}"
    engine = ProcessEngine(factory, (), engine_children.SAMPLE_RATE_HZ, 30.0, transcribes=bool, stall_timeout_s=10.0)
    engine.start()
    try:
        troubled = InstructRequest(
            "a", speech(1, 0.5, Trouble.DECODE_RAISES), SpeechTask("Answer.", SamplingOptions(max_tokens=4))
        )
        assert isinstance(Call(engine, troubled).error(), EngineFailed)
        wait_until(lambda: engine.stats().ready and engine.stats().counters.restarts == 1)
        assert (
            Call(engine, InstructRequest("b", speech(1), SpeechTask("Answer.", SamplingOptions(max_tokens=4))))
            .done()
            .usage.output_tokens
        )
    finally:
        engine.drain(1)
