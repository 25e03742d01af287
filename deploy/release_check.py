"""Build the sdist and the wheel, install the wheel in an empty environment, and transcribe a clip through it.

    python -m deploy.release_check              # `make release-check` installs what this needs first

The wheel is built from the sdist and has to hold every file of its packages that Git knows; its dependencies come from the
package index, as pinned in `constraints.txt`. The server then runs in an empty folder, without the checkout on its path, and
takes the default model from its cache (builds it, where there is none). Prints times and sizes; exit status 1 says what is
missing or wrong.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.clients.server import BenchServer, ServerError, make_body
from loadtest.support.markdown import table

ROOT = Path(__file__).parents[1]
PACKAGES = ("server", "kernels", "models", "export")
"""The top-level packages of the wheel."""
LEFT_OUT = (".md",)
"""Endings of files in these folders that are for readers of the repository."""
CLIP = ROOT / "tests" / "clips" / "ljspeech-LJ001-0002.flac"
WHERE_FROM = f"import {', '.join(PACKAGES)}; print(*({', '.join(f'{name}.__file__' for name in PACKAGES)}), sep='\\n')"


class ReleaseError(RuntimeError):
    """The release is not fit to be installed. The message is for the maintainer."""


@dataclass(frozen=True)
class Built:
    """The two files of a release."""

    wheel: Path
    sdist: Path


def project_version() -> str:
    """Return the version in `pyproject.toml`."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


def changelog_versions(text: str) -> list[str]:
    """Return the versions in a changelog, newest first, without what is unreleased."""
    return re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", text, re.MULTILINE)


def expected_files() -> list[str]:
    """Return the files of the wheel's packages, by Git, as they have to be in the wheel."""
    listed = _run(["git", "ls-files", *PACKAGES], ROOT).splitlines()
    return [name for name in listed if not name.endswith(LEFT_OUT)]


def build(folder: Path) -> Built:
    """Build the sdist, and the wheel from it, into `folder`. Raises `ReleaseError`."""
    _run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], ROOT)
    return Built(next(folder.glob("*.whl")), next(folder.glob("*.tar.gz")))


def require_complete(wheel: Path, expected: Sequence[str]) -> None:
    """Raise `ReleaseError` unless the wheel holds the expected files and no other top-level packages."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    if missing := sorted(set(expected) - set(names)):
        raise ReleaseError(f"The wheel lacks {len(missing)} files, among them {', '.join(missing[:5])}.")
    others = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")} - set(PACKAGES)
    if others:
        raise ReleaseError(f"The wheel holds more than its packages: {', '.join(sorted(others))}.")


def install(wheel: Path, folder: Path) -> Path:
    """Make an environment that holds the wheel and its dependencies, nothing else; return its Python. Raises `ReleaseError`."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], folder)
    return python


def require_installed(python: Path, folder: Path) -> None:
    """Raise `ReleaseError` unless the environment's own packages are imported and have the project's version."""
    for file in _run([str(python), "-c", WHERE_FROM], folder).split():
        if not Path(file).is_relative_to(python.parents[1]):
            raise ReleaseError(f"{file} is not of the installed wheel.")
    printed = _run([str(python.with_name("thinbridge")), "version"], folder).strip()
    if printed != f"thinbridge {project_version()}":
        raise ReleaseError(f"The installed command says {printed!r}.")


def transcribe(python: Path, folder: Path) -> tuple[float, float, str]:
    """Serve and post a clip; return seconds until the server is ready, until its text, and the text. Raises `ReleaseError`."""
    started_s = time.monotonic()
    try:
        with BenchServer(folder, [], python=str(python)) as server:
            ready_s = time.monotonic() - started_s
            reply = server.answer(make_body(CLIP.read_bytes()))
            answered_s = time.monotonic() - started_s
            page = server.client.get("/")
    except ServerError as error:
        raise ReleaseError(str(error)) from None
    if page.status_code != 200 or "<html" not in page.text.lower():
        raise ReleaseError(f"The page at / has status {page.status_code}.")
    if not reply["text"]:
        raise ReleaseError("The server found no text in the clip.")
    return ready_s, answered_s, reply["text"]


def folder_mib(folder: Path) -> float:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 2**20


def check(out: Path) -> list[str]:
    """Do the whole check, keeping the built files in `out`; return the report's lines. Raises `ReleaseError`."""
    version = project_version()
    if changelog_versions((ROOT / "CHANGELOG.md").read_text())[:1] != [version]:
        raise ReleaseError(f"CHANGELOG.md does not tell of version {version} first.")
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("*.whl"), *out.glob("*.tar.gz")):
        old.unlink()
    built = build(out)
    require_complete(built.wheel, expected_files())
    with tempfile.TemporaryDirectory(prefix="release-") as name:
        environment, empty = Path(name) / "environment", Path(name) / "empty"
        empty.mkdir()
        started_s = time.monotonic()
        python = install(built.wheel, environment)
        installed_s = time.monotonic() - started_s
        require_installed(python, empty)
        ready_s, answered_s, text = transcribe(python, empty)
        rows: list[list[object]] = [
            ["sdist", f"{built.sdist.stat().st_size / 2**20:.1f} MiB"],
            ["wheel", f"{built.wheel.stat().st_size / 2**20:.1f} MiB"],
            ["environment with the wheel and all that it needs", f"{folder_mib(environment):.0f} MiB"],
            ["making and filling the environment", f"{installed_s:.0f} s"],
            ["`thinbridge serve` until it is ready", f"{ready_s:.1f} s"],
            ["`thinbridge serve` until the first transcript", f"{answered_s:.1f} s"],
            ["the transcript", text],
        ]
    return table([f"Thinbridge {version}", ""], rows)


def _run(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the built files go; default: dist")
    arguments = parser.parse_args()
    try:
        print("\n".join(check(arguments.out.resolve())))
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
