"""The commands and programs of README.md and docs/ work: each is taken from there and run against a scripted engine.

Commands that set up or measure a machine (`make`, `docker`, `python -m`) are not run, but their targets, profiles and options
have to exist. Pages link to files that exist, list every error and every setting, and README.md stays short.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from server import cli
from server.errors import ServeError
from tests.repo import reference
from tests.support.clients.live_server import LiveServer, audio_file, live_server, tone
from tests.support.fakes.fake_engine import FakeEngine

ROOT = Path(__file__).parents[2]
ADDRESS = "127.0.0.1:8000"
README = ROOT / "README.md"
README_MAX_LINES = 150
# On a GPU machine only; `tests/models/runtimes/cuda` looks after what they start.
PAGES = [README, *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name not in ("gpu.md", "tensorrt_plans.md"))]
ALL_PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEST_NAME = re.compile(r"`(tests/[\w/]+/test_\w+\.py)(?:::(test_\w+))?`")
BLOCKS = [
    block for page in PAGES for block in re.findall(r"^```(sh|python)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
]
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
# A command goes on in the next line behind a backslash, and within quotes.
COMMAND = re.compile(r"(?:'[^']*'|\\\n|[^'\n])+")
COMMANDS = sorted(
    {each.split(" #")[0].strip() for language, text in BLOCKS if language == "sh" for each in COMMAND.findall(text)}
)
LINKS = [
    (page, link)
    for page in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    if not link.startswith("http")
]

# `thinbridge` without models, and a microphone that hears a second of silence.
THINBRIDGE = """#!{python}
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from server import cli
from server.errors import ServeError
from server.settings import Settings
from tests.support.fakes.fake_engine import FakeEngine

cli.get_bundle = lambda settings: Path("the-bundle")
cli.load_engine = lambda folder, settings: FakeEngine()
sys.exit(cli.main(sys.argv[1:]))
"""
MICROPHONE = "#!/bin/sh\nhead -c 32000 /dev/zero\n"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(FakeEngine()) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder in which a reader types, with some speech and the programs that `make` installs."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "speech.wav").write_bytes(audio_file(tone(1.0, 16_000), 16_000, "WAV"))
    (folder / "call.ulaw").write_bytes(bytes(8_000))
    (folder / "other.flac").write_bytes(audio_file(tone(1.0, 16_000), 16_000, "FLAC"))
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in (("thinbridge", THINBRIDGE.format(python=sys.executable, root=str(ROOT))), ("arecord", MICROPHONE)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return folder


def run(command: list[str], folder: Path) -> str:
    path = f"{folder / '.venv' / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    environment = {"PATH": path, "HOME": str(folder), "THINBRIDGE_PORT": "0"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_for_a_client(command: str) -> bool:
    return command.startswith(("curl ", "arecord ", ".venv/bin/thinbridge mic "))


@pytest.mark.parametrize("command", [each for each in COMMANDS if is_for_a_client(each)])
def test_what_a_client_types_is_answered(command: str, server: LiveServer, folder: Path) -> None:
    if shutil.which(command.split()[0]) is None and command.startswith("curl "):
        pytest.skip("there is no curl")
    if " mic " in command:
        command += f" --speed 0 --url {server.url}"
    else:
        command = command.replace("curl ", "curl --fail-with-body --silent --show-error --noproxy '*' ", 1)
    output = run(["bash", "-o", "pipefail", "-c", command.replace(ADDRESS, f"127.0.0.1:{server.port}")], folder)
    assert output.strip()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.split("\n")[0])
def test_the_python_programs_run(program: str, server: LiveServer, folder: Path) -> None:
    output = run([sys.executable, "-c", program.replace(ADDRESS, f"127.0.0.1:{server.port}")], folder)
    assert output.strip()


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith(".venv/bin/thinbridge ")])
def test_the_command_line_is_understood(command: str, folder: Path) -> None:
    arguments = shlex.split(command)[1:]
    parsed = cli._parser().parse_args(arguments)
    if parsed.command in (cli.transcribe_command, cli.version_command):
        assert run([str(folder / ".venv/bin/thinbridge"), *arguments], folder).strip()


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("make")])
def test_make_has_the_targets(command: str) -> None:
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@cache
def help_of(*module: str) -> str:
    command = [sys.executable, "-m", *module, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", [each for each in COMMANDS if "python -m " in each or each.startswith(".venv/bin/locust")])
def test_modules_have_the_options(command: str) -> None:
    words = shlex.split(command)
    shown = help_of(words[words.index("-m") + 1]) if "-m" in words else help_of("locust", "-f", words[words.index("-f") + 1])
    assert [word for word in words if word.startswith("--") and word not in shown] == []


def test_every_command_is_looked_at() -> None:
    docker = [each for each in COMMANDS if each.startswith("docker ")]
    profiles = {
        profile
        for service in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
        for profile in service["profiles"]
    }
    assert all(shlex.split(each)[3] in profiles for each in docker)
    known = (
        "curl ",
        "arecord ",
        ".venv/bin/thinbridge ",
        "make ",
        ".venv/bin/python -m ",
        "python -m ",
        ".venv/bin/locust ",
        "docker ",
        "kubectl ",
        "helm install thinbridge deploy/helm/thinbridge ",
    )
    assert [each for each in COMMANDS if not each.startswith(known)] == []


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= README_MAX_LINES


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[f"{page.name}-{link}" for page, link in LINKS])
def test_links_lead_somewhere(page: Path, link: str) -> None:
    path, _, heading = link.partition("#")
    target = page.parent / path if path else page
    assert target.exists()
    if heading:
        text = re.sub(r"^```.*?^```", "", target.read_text(), flags=re.MULTILINE | re.DOTALL)
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert heading in [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings]


def test_tests_that_pages_name_exist() -> None:
    named = {name for page in ALL_PAGES for name in TEST_NAME.findall(page.read_text(encoding="utf-8"))}
    missing = []
    for file, function in sorted(named):
        path = ROOT / file
        if not path.is_file() or (function and not re.search(rf"^(async )?def {function}\(", path.read_text(), re.MULTILINE)):
            missing.append(f"{file}::{function}")
    assert len(named) > len(ALL_PAGES)
    assert missing == []


def test_every_page_is_in_the_site() -> None:
    """And the site has no other; mkdocs itself is installed by `make docs` only."""
    listed = re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted([*pages, "index.md"])


def test_the_tables_are_those_of_the_code() -> None:
    """`python -m tests.repo.reference` writes them."""
    assert reference.SETTINGS.read_text() == reference.settings_page()
    assert reference.REFERENCE.read_text() == reference.reference_page()


@pytest.mark.parametrize("error", reference.subclasses(ServeError), ids=lambda error: error.code)
def test_every_error_is_listed(error: type[ServeError]) -> None:
    rows = (ROOT / "docs" / "api.md").read_text().splitlines()
    assert any(row.startswith(f"| {error.status} |") and f"`{error.code}`" in row for row in rows)
