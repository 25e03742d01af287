"""The frozen LLM's own answers to the text of utterances: what the adapter must bring out of their audio.

    python -m training.answers --cache work/cache/real --llm FILE.gguf --out work/answers.jsonl --count 1200 --seed 0

Behaviour alignment: the target of an instruction about speech is what the LLM says about its text. A second run goes on.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from tqdm import tqdm

from export.checkpoints.hub import local_source
from training.data import StateCorpus
from training.instructions import ANSWER
from training.llm import open_llm
from training.targets import open_targets

MAX_TOKENS = 40
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, nargs="+", required=True)
    parser.add_argument("--llm", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    llm = open_llm(local_source(arguments.llm), dtype=torch.bfloat16)
    texts = sorted(
        {
            example.text
            for example in StateCorpus(arguments.cache, open_targets("llm", arguments.llm)).train
            if 4 <= len(example.tokens) <= 50
        }
    )
    rng = random.Random(arguments.seed)
    pairs = [(rng.choice(texts), rng.choice(ANSWER)) for _ in range(arguments.count)]
    pairs.sort(key=lambda pair: pair[1])
    done = len(arguments.out.read_text().splitlines()) if arguments.out.exists() else 0
    with arguments.out.open("a") as out, tqdm(total=len(pairs), initial=done, desc="answers") as progress:
        while done < len(pairs):
            instruction = pairs[done][1]
            batch = [text for text, other in pairs[done : done + BATCH] if other == instruction]
            answers = llm.generate([instruction] * len(batch), [llm.table[llm.ids(text)] for text in batch], MAX_TOKENS)
            for text, answer in zip(batch, answers, strict=True):
                row = {
                    "instruction": instruction,
                    "text": text,
                    "answer": llm.tokeniser.decode(answer),
                    "whole": len(answer) < MAX_TOKENS,
                }
                print(json.dumps(row), file=out, flush=True)
            done += len(batch)
            progress.update(len(batch))


if __name__ == "__main__":
    main()
