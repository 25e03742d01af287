"""Draw a run's curves: CTC loss and held-out WER of stage 1, and the next-token loss of stage 2, with the LLM in the loop.

python -m training.run_card --ctc work/ctc/history.json --stage2 work/stage2/history.json --out training/results
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ctc", type=Path, required=True, help="history.json of train_ctc")
    parser.add_argument("--stage2", type=Path, required=True, help="history.json of train_stage2")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    ctc, stage2 = json.loads(arguments.ctc.read_text()), json.loads(arguments.stage2.read_text())

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    loss, words, reading = figure.subplots(1, 3)
    loss.plot([row["step"] for row in ctc], [row["loss"] for row in ctc], marker=".")
    loss.set(title="CTC loss per token (training)", xlabel="step", ylim=(0, None))
    for dataset in sorted({dataset for row in ctc for dataset in row["dev_wer"]}):
        rows = [row for row in ctc if dataset in row["dev_wer"]]
        words.plot([row["step"] for row in rows], [100 * row["dev_wer"][dataset] for row in rows], marker=".", label=dataset)
    words.set(title="WER of the CTC draft (held out, %)", xlabel="step", ylim=(0, 100))
    words.legend(fontsize=7)
    reading.plot([row["step"] for row in stage2], [row["loss"] for row in stage2], marker=".", label="next-token loss")
    reading.plot([row["step"] for row in stage2], [row["accuracy"] for row in stage2], marker=".", label="tokens right")
    for row, following in pairwise(stage2):
        if row["stage"] != following["stage"]:
            reading.axvline(row["step"], color="grey", linewidth=0.8)
    reading.set(title="The LLM learns to read (boundary vectors)", xlabel="step", ylim=(0, None))
    reading.legend(fontsize=7)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
