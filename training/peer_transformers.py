"""The same weights run by torch and transformers in float32: what the benchmark compares the server with.

    python -m training.peer_transformers --whisper FILE.bin --llm FILE.gguf --threads 2

One JSON object per line: `{"audio": WAV, "instruction": TEXT, "max_tokens": N}` in, `{"text": TEXT}` out, after a first line
`{"ready": true}`. Greedy. The encoder runs on the audio's own length as ours does, which spares it the usual padding to 30 s.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from export.default_recipe import DEFAULT_RECIPE, SMOLLM
from models.features.log_mel import SAMPLE_RATE_HZ, Float32, log_mel
from models.projectors.subsample_ctc import read_adapter
from training.adapter import Adapter, AdapterConfig
from training.bridge import bridge, ctc_runs, with_boundaries
from training.llm import FrozenLlm
from training.whisper_encoder import WhisperEncoder


class TransformersChain:
    """The whole chain, one utterance at a time."""

    def __init__(self, whisper: Path, llm: Path) -> None:
        self.encoder = WhisperEncoder(whisper)
        self.llm = FrozenLlm(llm, torch.float32)
        trained = read_adapter(DEFAULT_RECIPE.adapter)
        names = {field.name for field in dataclasses.fields(AdapterConfig)}
        self.adapter = Adapter(AdapterConfig(**{name: value for name, value in trained.config.items() if name in names}))
        self.adapter.load_state_dict({name: torch.from_numpy(np.array(weight)) for name, weight in trained.weights.items()})
        self.adapter.eval().requires_grad_(False)
        self.blank_threshold = float(trained.config["blank_threshold"])
        self.end_tokens = [self.llm.tokeniser.token_to_id(name) for name in SMOLLM.end_tokens]

    @torch.inference_mode()
    def answer(self, audio: Path, instruction: str, max_tokens: int) -> str:
        samples, rate_hz = soundfile.read(audio, dtype="float32")
        if rate_hz != SAMPLE_RATE_HZ:
            raise ValueError(f"{audio} is not at {SAMPLE_RATE_HZ} Hz")
        embeddings = torch.cat(
            [self.embed(SMOLLM.prefix, instruction, SMOLLM.after_instruction), self.hear(samples), self.embed(SMOLLM.suffix)]
        )[None]
        ids = self.llm.model.generate(  # type: ignore[misc]
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=self.end_tokens,
            pad_token_id=self.end_tokens[-1],
        )[0]
        text: str = self.llm.tokeniser.decode(ids.tolist())
        return text.strip()

    def embed(self, *texts: str) -> Tensor:
        """Each text tokenised on its own, as the prompt's parts are."""
        return self.llm.table[torch.tensor([id for text in texts for id in self.llm.ids(text)])]

    def hear(self, samples: Float32) -> Tensor:
        """Return the input of the LLM for the audio [frames, embedding_size]."""
        states = self.encoder(torch.from_numpy(log_mel(samples)))
        frames = len(states) // self.adapter.config.reduction
        hidden = self.adapter(states[None], torch.tensor([frames]))[0][0]
        queries, blank = self.adapter.token_queries(hidden), self.adapter.blank(hidden)[:, 0]
        runs = ctc_runs(queries, blank, self.llm.table, self.blank_threshold)
        return with_boundaries(self.adapter, bridge(self.adapter, hidden, runs, self.llm.table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whisper", type=Path, required=True, help="Whisper base as a CTranslate2 model.bin")
    parser.add_argument("--llm", type=Path, required=True, help="SmolLM2 as GGUF")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # Libraries print; replies keep the real standard output to themselves.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    chain = TransformersChain(arguments.whisper, arguments.llm)
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        text = chain.answer(Path(request["audio"]), request["instruction"], request["max_tokens"])
        print(json.dumps({"text": text}), file=replies, flush=True)


if __name__ == "__main__":
    main()
