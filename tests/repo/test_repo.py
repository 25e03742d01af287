"""Rules of the repository that no other tool checks."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "server": {"server", "models", "kernels"},
    "models": {"models", "kernels"},
    "kernels": {"kernels"},
    "export": {"export", "models", "kernels"},
    "training": {"training", "export", "models", "kernels"},
    "loadtest": {"loadtest"},
    "deploy": {"deploy", "loadtest", "server", "models"},
}
MAY_ALSO_IMPORT = {
    "server/cli.py": {"export"},
    "server/model_commands.py": {"export"},
    **{
        f"loadtest/capacity/{name}.py": {"server", "models"}
        for name in ("__main__", "engine", "measure", "streams", "traced_engine")
    },
    **{f"loadtest/played/{name}.py": {"server", "models"} for name in ("__main__", "engine")},
}
MAY_READ_ENVIRONMENT = {"server/settings.py", "export/default_bundle.py"}
SERVED_WITHOUT = ("torch", "triton", "tensorrt", "transformers")

SOURCES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()

BLOCK_AND_IMPORT = f"""
import importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {SERVED_WITHOUT!r}:
            raise ModuleNotFoundError(f"{{name}} is not part of the default install", name=name)

sys.meta_path.insert(0, Block())
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def reads_environment(path: Path) -> bool:
    tree = ast.parse(path.read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return bool(names & {"environ", "environb", "getenv"})


def test_there_is_something_to_check() -> None:
    assert {relative(path).split("/")[0] for path in SOURCES} == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    forbidden = (set(MAY_IMPORT) | {"tests"}) - MAY_IMPORT[package]
    wrong = [
        f"{path} imports {module}"
        for path in map(relative, SOURCES)
        if path.startswith(f"{package}/")
        for module in imported_modules(ROOT / path)
        if module.split(".")[0] in forbidden - MAY_ALSO_IMPORT.get(path, set())
    ]
    assert wrong == []


def test_no_relative_imports() -> None:
    assert [relative(path) for path in SOURCES if any(module.startswith(".") for module in imported_modules(path))] == []


@pytest.mark.parametrize("package", ["server", "models", "kernels", "export"])
def test_imports_without_optional_libraries(package: str) -> None:
    """All of `server` and `models` but the GPU's runtimes, and what stands at the top of `kernels` and `export`."""
    whole = package in ("server", "models")
    paths = [path for path in SOURCES if path.is_relative_to(ROOT / package) and (whole or path.parent == ROOT / package)]
    served = [path for path in paths if path.stem != "__main__" and not path.is_relative_to(ROOT / "models/runtimes/cuda")]
    modules = [module_of(path) for path in served]
    result = subprocess.run(
        [sys.executable, "-c", BLOCK_AND_IMPORT, *modules], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_environment_is_read_in_one_place() -> None:
    assert {relative(path) for path in SOURCES if reads_environment(path)} <= MAY_READ_ENVIRONMENT


def test_no_assert_stands_guard() -> None:
    """`python -O` drops them."""
    guarded = [path for path in SOURCES if any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text())))]
    assert [relative(path) for path in guarded] == []


def test_nothing_is_unpickled() -> None:
    """Model files are safetensors, ONNX, NumPy without objects, and JSON."""
    served = [path for path in SOURCES if relative(path).split("/")[0] != "training"]
    assert [relative(path) for path in served if {"pickle", "marshal", "shelve"} & set(imported_modules(path))] == []
    assert [relative(path) for path in served if "allow_pickle=True" in path.read_text()] == []


@pytest.mark.parametrize("target", ["serve", "test"])
def test_readme_names_the_make_targets(target: str) -> None:
    assert f"make {target}\n" in README
    assert f"\n{target}:" in MAKEFILE


def test_ci_runs_the_readme_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[-1] == "exec make --no-print-directory test"
