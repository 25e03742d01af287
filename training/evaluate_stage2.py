"""WER of a checkpoint on the held-out part of the training data: by its CTC draft, and by the LLM that reads it.

    python -m training.evaluate_stage2 --checkpoint work/stage2/checkpoint.pt --cache work/cache/real ... --llm FILE.gguf

For choosing between variants without touching the evaluation sets.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm

from export.checkpoints.hub import local_source
from training.bridge import bridge, ctc_runs, with_boundaries
from training.checkpoint import load_adapter
from training.ctc import greedy_tokens
from training.data import Example, StateCorpus
from training.llm import open_llm
from training.targets import open_targets
from training.word_errors import word_error_rate

INSTRUCTION = "Transcribe the speech to text."


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--cache", type=Path, nargs="+", required=True)
    parser.add_argument("--llm", type=Path, required=True)
    parser.add_argument("--per-dataset", type=int, default=16)
    parser.add_argument("--datasets", nargs="*", help="only these")
    parser.add_argument("--blank-threshold", type=float, nargs="+", default=[0.5])
    parser.add_argument("--instruction", default=INSTRUCTION)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", type=int, default=0, help="print this many transcripts per dataset")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    llm = open_llm(local_source(arguments.llm), dtype=torch.bfloat16)
    adapter = load_adapter(arguments.checkpoint)
    corpus = StateCorpus(arguments.cache, open_targets("llm", arguments.llm))
    by_dataset: dict[str, list[Example]] = defaultdict(list)
    for example in corpus.dev:
        wanted = not arguments.datasets or example.dataset in arguments.datasets
        if wanted and len(by_dataset[example.dataset]) < arguments.per_dataset:
            by_dataset[example.dataset].append(example)
    for threshold in arguments.blank_threshold:
        rates = {}
        for dataset, examples in tqdm(sorted(by_dataset.items()), desc=f"blank threshold {threshold}"):
            examples.sort(key=lambda e: e.frames)
            speech, drafts = [], []
            for example in examples:
                batch = corpus.batch([example])
                hidden, _ = adapter(batch.states, batch.frames)
                queries, blank = adapter.token_queries(hidden)[0], adapter.blank(hidden)[0, :, 0]
                drafts.append(llm.tokeniser.decode(greedy_tokens(queries, blank, llm.table)))
                runs = ctc_runs(queries, blank, llm.table, threshold)
                speech.append(with_boundaries(adapter, bridge(adapter, hidden[0], runs, llm.table)))
            texts = [
                llm.tokeniser.decode(answer)
                for batch in (speech[start : start + 8] for start in range(0, len(speech), 8))
                for answer in llm.generate([arguments.instruction] * len(batch), batch, max_tokens=100)
            ]
            references = [example.text for example in examples]
            rates[dataset] = {"draft": word_error_rate(references, drafts), "llm": word_error_rate(references, texts)}
            for triple in list(zip(references, drafts, texts, strict=True))[: arguments.show]:
                print("\n   ".join(triple), flush=True)
        print(json.dumps({"blank_threshold": threshold, "wer": rates}, indent=1), flush=True)


if __name__ == "__main__":
    main()
