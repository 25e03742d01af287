"""Recipes of bundles, as data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from export.fetch import Wheel
from models.bundle.schema import BundleDescription
from models.registry import import_by_name


@dataclass(frozen=True)
class Ingredients:
    """The inputs of a conversion: `wheels` by project name, and `scratch`, an empty folder that is deleted afterwards."""

    wheels: dict[str, Path]
    adapter: Path
    scratch: Path
    precision: str


Convert = Callable[[Ingredients, Path], BundleDescription]
"""Writes a bundle's files into a folder and returns its description."""


@dataclass(frozen=True)
class LateConversion:
    """A `Convert` named `module:function` and imported when called: a start from the cache needs none of its libraries."""

    place: str

    def __call__(self, ingredients: Ingredients, folder: Path) -> BundleDescription:
        convert: Convert = import_by_name(self.place)
        return convert(ingredients, folder)


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
