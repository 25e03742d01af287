"""All models of a bundle, loaded: what an engine runs and an evaluation measures."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from threadpoolctl import threadpool_limits

from models.bundle.bundle import Bundle
from models.features.log_mel import log_mel
from models.projectors.trained import read_adapter
from models.protocols import LLM, Adapter, Encoder, Float32, VoiceDetector
from models.runtimes.onnx.encoder import OnnxEncoder
from models.runtimes.onnx.llm import OnnxLLM
from models.runtimes.onnx.projector import OnnxAdapter
from models.text.constraint import Grammars
from models.text.tokeniser import PromptTemplate, Tokeniser, plain_words
from models.text.word_times import WordTimer
from models.vad.silero import OnnxVoiceDetector

# Of a bundle that names none of its own.
TRANSCRIPTION_INSTRUCTION = "Transcribe the speech to text."


def _nothing() -> None:
    """A CPU is not lost."""


@dataclass(frozen=True)
class Models:
    """The chain's parts. `features` turns mono audio into log-mel features [mel_bins, mel_frames]; an adapter frame is `frame_s`.

    Under `transcription_instruction` the answer is a transcript. There is no `word_timer` where the adapter gives no CTC draft.
    With `encodes_beside`, encoder and adapter do not take the LLM's processor (on a GPU each has a stream of its own) and may
    run in one thread while the LLM runs in another. `check` is for after a failure: it raises `BackendLostError` where that was
    the last of what the models ran.
    """

    features: Callable[[Float32], Float32]
    encoder: Encoder
    adapter: Adapter
    llm: LLM
    tokeniser: Tokeniser
    template: PromptTemplate
    voice: VoiceDetector
    word_timer: WordTimer | None
    boundary_instructions: frozenset[str] | None = None
    frame_s: float = 0.08
    transcription_instruction: str = TRANSCRIPTION_INSTRUCTION
    encodes_beside: bool = False
    check: Callable[[], None] = _nothing

    def boundaries(self, instruction: str) -> tuple[Float32, Float32]:
        """The adapter's vectors before and after the speech; none under an instruction that they were not trained for.

        They make the LLM copy what it hears. Without them it treats the speech as it treats text, which is what any other
        instruction wants.
        """
        before, after = self.adapter.boundary_before, self.adapter.boundary_after
        return (before, after) if self.transcribes(instruction) else (before[:0], after[:0])

    def transcribes(self, instruction: str) -> bool:
        """Whether the instruction is known to ask for a transcript: the boundary vectors were trained under it."""
        return self.boundary_instructions is None or plain_words(instruction) in self.boundary_instructions

    @cached_property
    def grammars(self) -> Grammars:
        """Grammars for the LLM's answers."""
        return Grammars(self.tokeniser, self.template.end_tokens, self.llm.vocabulary_size)


def load_models(bundle: Bundle, slots: int, threads: int) -> Models:
    """Load a verified bundle's models on the CPU; 0 threads means one per core. Raises `BackendError`."""
    manifest = bundle.manifest
    embedding = bundle.path(manifest.llm.embedding)
    trained = read_adapter(bundle.path(manifest.adapter.weights))
    return chain_models(
        bundle,
        encoder=OnnxEncoder(bundle.path(manifest.encoder.graph), threads),
        adapter=OnnxAdapter(
            bundle.path(manifest.adapter.graph),
            np.load(embedding, mmap_mode="r"),
            boundary_before=trained.boundary_before,
            boundary_after=trained.boundary_after,
            threads=threads,
        ),
        llm=OnnxLLM(bundle.path(manifest.llm.graph), embedding, slots=slots, threads=threads),
    )


def chain_models(bundle: Bundle, encoder: Encoder, adapter: Adapter, llm: LLM) -> Models:
    """The chain of a bundle's models, wherever those run; all else in it runs on the CPU.

    numpy's linear algebra is left one thread in this process: its idle ones spin, and take a core from the models.
    """
    threadpool_limits(1, "blas")
    manifest = bundle.manifest
    instructions = manifest.adapter.boundary_instructions
    tokeniser = Tokeniser.from_file(bundle.path(manifest.llm.tokeniser))
    frame_s = manifest.adapter.subsampling / manifest.encoder.states_per_s
    return Models(
        features=log_mel,
        encoder=encoder,
        adapter=adapter,
        llm=llm,
        tokeniser=tokeniser,
        template=PromptTemplate.from_json(manifest.prompt.model_dump()),
        voice=OnnxVoiceDetector(bundle.path(manifest.voice.graph), manifest.voice.window_samples),
        word_timer=WordTimer(tokeniser, manifest.llm.vocabulary_size, manifest.sample_rate_hz, frame_s),
        boundary_instructions=None if instructions is None else frozenset(map(plain_words, instructions)),
        frame_s=frame_s,
        transcription_instruction=instructions[0] if instructions else TRANSCRIPTION_INSTRUCTION,
    )
