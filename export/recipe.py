"""Recipes of bundles, as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from export.fetch import SourcedFile, Wheel
from models.bundle.schema import BundleDescription
from models.registry import import_by_name


@dataclass(frozen=True)
class Ingredients:
    """The inputs of a conversion: `wheels` by project name, `files` by name.

    `scratch` is an empty folder that is deleted afterwards.
    """

    wheels: dict[str, Path]
    adapter: Path
    scratch: Path
    precision: str
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class LanguageModel:
    """The LLM of a bundle: its GGUF `file` among the recipe's, or None for the one in a wheel, and its prompt.

    The prompt is `[prefix][instruction][after_instruction] speech [suffix]`, or, where `after_speech` is given,
    `[prefix] speech [after_speech][instruction][after_instruction][suffix]`. Special tokens stand in it by their names.
    """

    bundle_name: str
    name: str
    licence: str
    file: str | None
    prefix: str
    after_instruction: str = "\n"
    suffix: str = "<|im_end|>\n<|im_start|>assistant\n"
    end_tokens: tuple[str, ...] = ("<|im_end|>", "<|endoftext|>")
    after_speech: str | None = None


Convert = Callable[[Ingredients, Path], BundleDescription]
"""Writes a bundle's files into a folder and returns its description."""


@dataclass(frozen=True)
class LateConversion:
    """A `Convert` named `module:function` and imported when called: a start from the cache needs none of its libraries.

    The function takes the LLM too.
    """

    place: str
    llm: LanguageModel

    def __call__(self, ingredients: Ingredients, folder: Path) -> BundleDescription:
        description: BundleDescription = import_by_name(self.place)(ingredients, folder, self.llm)
        return description


@dataclass(frozen=True)
class Recipe:
    """How a bundle is made. `convert` writes all files but `bundle.json`.

    Raise `version` whenever the conversion gives something else: a new version, precision or adapter makes a new folder beside
    the old one.
    """

    name: str
    version: int
    wheels: tuple[Wheel, ...]
    adapter: Path
    convert: Convert
    files: tuple[SourcedFile, ...] = ()
