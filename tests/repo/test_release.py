"""The release is whole: one version, a changelog that tells of it, and every file of its packages in the wheel."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import Distribution
from setuptools.config.pyprojecttoml import apply_configuration

from deploy.release_check import LEFT_OUT, PACKAGES, ReleaseError, changelog_versions, project_version, require_complete

ROOT = Path(__file__).parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
WITHOUT = "import sys; sys.modules |= dict.fromkeys(sys.argv[1:]); import deploy.release_check"
GROUPS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_changelog_tells_of_this_version_first() -> None:
    assert changelog_versions(CHANGELOG)[0] == project_version()
    assert re.findall(r"^## .*", CHANGELOG, re.MULTILINE)[0] == "## [Unreleased]"


def test_the_changelog_has_the_groups_of_keep_a_changelog() -> None:
    assert set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)) <= GROUPS


def test_the_chart_installs_this_version() -> None:
    assert yaml.safe_load((ROOT / "deploy/helm/thinbridge/Chart.yaml").read_text())["appVersion"] == project_version()


def test_the_version_is_written_once_in_the_packages() -> None:
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert [path for path in sources if "__version__ =" in path.read_text()] == []


def test_the_wheel_holds_every_file_of_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """By setuptools' own reading of the configuration, without a build."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    apply_configuration(distribution, "pyproject.toml")
    command = distribution.get_command_obj("build_py")
    command.finalize_options()
    modules = {
        Path(file).relative_to(ROOT) if Path(file).is_absolute() else Path(file) for _, _, file in command.find_all_modules()
    }
    data = {Path(source) / name for _, source, _, names in command.data_files for name in names}
    known = {Path(name) for name in _tracked_files() if not name.endswith(LEFT_OUT)}
    assert known - {Path(file) for file in modules | data} == set()
    assert {file.parts[0] for file in modules} == set(PACKAGES)


def test_the_check_runs_with_what_its_extra_installs() -> None:
    """In an environment with all extras, a package of another would go unnoticed."""
    installed = _installed_by("release")
    sources = {name: {canonicalize_name(each) for each in found} for name, found in packages_distributions().items()}
    others = [name for name, found in sources.items() if not installed & found]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *others], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _installed_by(extra: str) -> set[str]:
    """Return the distributions that come with the project and one of its extras, as far as they are installed."""
    installed, left = set[str](), [("thinbridge", extra)]
    while left:
        name, with_extra = left.pop()
        installed.add(name)
        try:
            requirements = requires(name) or ()
        except PackageNotFoundError:
            continue
        for text in requirements:
            needed = Requirement(text)
            is_wanted = needed.marker is None or needed.marker.evaluate({"extra": with_extra})
            if is_wanted and (each := canonicalize_name(needed.name)) not in installed:
                left.append((each, ""))
    return installed


def _tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def _wheel(folder: Path, *names: str) -> Path:
    path = folder / "thinbridge-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*names, "thinbridge-0.dist-info/METADATA"):
            archive.writestr(name, "")
    return path


def test_a_wheel_that_lacks_a_file_is_found_out(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, "server/__init__.py")
    require_complete(wheel, ["server/__init__.py"])
    with pytest.raises(ReleaseError, match=r"lacks 1 files, among them server/api/page\.html"):
        require_complete(wheel, ["server/__init__.py", "server/api/page.html"])


def test_a_wheel_with_other_packages_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="more than its packages: tests"):
        require_complete(_wheel(tmp_path, "server/__init__.py", "tests/__init__.py"), ["server/__init__.py"])
