"""Results as files."""

import json
from pathlib import Path
from typing import Any


def write_results(folder: Path, name: str, result: Any, text: str) -> None:
    """Write a result as `name`.json and its report as `name`.md into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
