"""Run the experiments, or go on with them, and write their tables and plots.

    python -m training.experiments --cache work/cache/whisper-0 work/cache/whisper-1 --whisper CT2 --data DATA

`--cache` are caches of `training.cache_whisper`. A run that has its JSON file in `--out` is not repeated, and a run
that was stopped goes on; `--report` trains nothing.
"""

import argparse
import json
from pathlib import Path

import torch

from training.experiments.corpus import SpokenCorpus
from training.experiments.curves import draw_curves
from training.experiments.encoder_top import cache_lower_states, known_texts
from training.experiments.plan import FAMILIES, plan_runs
from training.experiments.report import read_runs, write_report
from training.experiments.train import Schedule, run_setting
from training.whisper_encoder import WhisperEncoder

RESULTS = Path("training/results/experiments")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--whisper", type=Path, help="Whisper in CTranslate2's format, for the family `encoder`")
    parser.add_argument("--data", type=Path, help="folder with train.jsonl, for the family `encoder`")
    parser.add_argument("--work", type=Path, default=Path("work/experiments"), help="checkpoints and the cache of lower states")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--steps", type=int, default=Schedule.steps)
    parser.add_argument("--encoder-minutes", type=float, default=8.0, help="audio for the family `encoder`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="only write tables and plots of the runs that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    schedule = Schedule(steps=arguments.steps)
    todo = [each for each in plan_runs(tuple(arguments.families)) if not (arguments.out / f"{each.name}.json").exists()]
    corpora: dict[int, SpokenCorpus] = {}
    for setting in [] if arguments.report else todo:
        lower = setting.encoder_layers
        encoder = WhisperEncoder(arguments.whisper / "model.bin") if lower else None
        if lower not in corpora:
            caches = list(arguments.cache)
            if encoder is not None:
                texts = known_texts(caches)
                caches = [arguments.work / f"below{lower}"]
                cache_lower_states(arguments.data, texts, encoder, lower, caches[0], 60 * arguments.encoder_minutes)
            corpora[lower] = SpokenCorpus(caches, schedule.held_out)
        result = run_setting(setting, schedule, corpora[lower], encoder, arguments.work / f"{setting.name}.pt")
        (arguments.out / f"{setting.name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    runs = read_runs(arguments.out)
    draw_curves(runs, arguments.out / "experiments.png")
    print(write_report(runs, arguments.out).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
