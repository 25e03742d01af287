"""Which share of the CTC, and which bonus for a token, find the best transcripts? Searches held-out recordings with each.

    python -m training.search_study --bundle BUNDLE --data DATA_DIR --sets libri_clean_5 nonnative --unheard libri_clean_5

Prints a table of word error rates on recordings of `train.jsonl`: those that its adapter is never trained on (1 of 25, by a hash
of the id), and of the sets that are `--unheard`, which this adapter was not trained on, any; evenly over the speakers.
"""

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from export.markdown import table
from models.assemble import load_models
from models.bundle.io import Bundle, open_bundle
from models.chain import Models
from models.ctc import NO_TOKEN, collapse
from models.protocols import CtcDraft
from models.runtimes.onnx.decoder import OnnxLLM
from models.text.ctc_prefix import CtcScores
from models.text.joint_search import JointSearch
from training.cache_states import is_held_out
from training.recordings import read_audio, read_rows
from training.word_errors import word_error_rate

ALONE_BLANK = 0.4
"""P(blank) below which the adapter alone keeps a frame, chosen for that (`training/RUN.md`); a search is given more frames."""


def pick_rows(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return so many recordings, one of each speaker after the other, in an order that seed 0 draws."""
    by_speaker = defaultdict(list)
    random.Random(0).shuffle(rows)
    for row in rows:
        by_speaker[row["speaker"]].append(row)
    return [row for turn in zip_longest(*by_speaker.values()) for row in turn if row is not None][:count]


def read_drafts(models: Models, folder: Path, rows: list[dict[str, Any]]) -> Iterator[CtcDraft]:
    """Yield the draft of each recording before any search."""
    for row in tqdm(rows, desc=rows[0]["set"]):
        audio = read_audio(folder / row["file"])
        yield models.project([models.encode_alone(audio)], [len(audio)])[0].require_draft()


def words_wrong(said: list[str], texts: list[str]) -> str:
    return f"{100 * word_error_rate(said, texts):.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="one with a search")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--sets", nargs="+", required=True, help="sets with transcripts")
    parser.add_argument("--unheard", nargs="*", default=[])
    parser.add_argument("--per-set", type=int, default=112)
    parser.add_argument("--ctc-weights", type=float, nargs="+", default=[0.55, 0.65, 0.75])
    parser.add_argument("--token-bonuses", type=float, nargs="+", default=[0.0, 2.0])
    parser.add_argument("--hypotheses", type=int, nargs="+", default=[4])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    projector = bundle.manifest.require_projector()
    if (section := projector.search) is None:
        parser.error("the bundle has no search")
    unsearched = bundle.manifest.model_copy(update={"projector": projector.model_copy(update={"search": None})})
    models = load_models(Bundle(bundle.folder, unsearched), slots=1, threads=arguments.threads)
    if not isinstance(llm := models.llm, OnnxLLM):
        parser.error("the bundle's LLM has no slots to search in")
    lines = []
    for name in arguments.sets:
        rows = read_rows(arguments.data / "train.jsonl", [name])
        rows = pick_rows(
            [row for row in rows if name in arguments.unheard or is_held_out(Path(row["file"]).stem)], arguments.per_set
        )
        drafts, said = list(read_drafts(models, arguments.data, rows)), [row["text"] for row in rows]
        scores = [CtcScores.of_draft(draft) for draft in drafts]
        paths = [np.where(draft.blank_probability < ALONE_BLANK, draft.best_token, NO_TOKEN) for draft in drafts]
        texts = [models.tokeniser.decode(collapse(path)) for path in paths]
        lines.append((name, len(rows), "no search", "", "", words_wrong(said, texts), ""))
        for hypotheses, weight, bonus in product(arguments.hypotheses, arguments.ctc_weights, arguments.token_bonuses):
            search = JointSearch(llm.with_slots(hypotheses), section.context, section.end_token, weight, bonus, section.margin)
            started_s = time.perf_counter()
            texts = [models.tokeniser.decode(search.find_transcript(each)) for each in tqdm(scores, desc=f"{weight}, {bonus}")]
            took_ms = 1000 * (time.perf_counter() - started_s) / len(drafts)
            lines.append((name, len(rows), hypotheses, weight, bonus, words_wrong(said, texts), f"{took_ms:.0f}"))
    print(table(("set", "recordings", "hypotheses", "CTC weight", "token bonus", "words wrong", "ms each"), lines))


if __name__ == "__main__":
    main()
