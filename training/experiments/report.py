"""Tables of the runs that are there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.markdown import table
from training.experiments.plan import COMMON, FAMILIES, Setting

Runs = Mapping[Setting, dict[str, Any]]

TITLES = {
    "seeds": "The same run twice: the noise of a seed",
    "depth": "Depth of the adapter",
    "stacking": "Subsampling by stacking",
    "uniform": "Subsampling by keeping every n-th state",
    "encoder": "The encoder's last layer of six, frozen and tuned",
}
HEAD = ["run", "trained numbers", "loss per letter", "wrong letters", "wrong words", "processor"]


def read_runs(folder: Path) -> dict[Setting, dict[str, Any]]:
    """Return the results in a folder by their settings."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("layers*.json"))]
    return {Setting(**result["setting"]): result for result in found}


def describe_setting(family: str, setting: Setting) -> str:
    """Return a row's name, by the thing that the family changes."""
    if family == "seeds":
        return f"seed {setting.seed}"
    if family == "depth":
        return f"{setting.layers} layer{'' if setting.layers == 1 else 's'}"
    if family == "encoder":
        return "tuned" if setting.tunes_encoder else "frozen"
    return f"{setting.subsampling}, {setting.reduction}x"


def write_report(runs: Runs, folder: Path) -> Path:
    """Write `experiments.md` and return it."""
    lines = []
    for family, title in TITLES.items():
        rows = [_row(family, setting, runs[setting]) for setting in FAMILIES[family] if setting in runs]
        if rows:
            lines += [f"**{title}**", "", table(HEAD, rows), ""]
    path = folder / "experiments.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _row(family: str, setting: Setting, result: dict[str, Any]) -> list[str]:
    final = result["final"]
    name = describe_setting(family, setting)
    return [
        f"**{name}**" if setting == COMMON else name,
        f"{result['trained_parameters'] / 1e6:.2f} M",
        f"{final['loss']:.3f}",
        f"{final['letter_error_rate']:.1f} %",
        f"{final['word_error_rate']:.1f} %",
        f"{result['history'][-1]['processor_s']:.0f} s",
    ]
