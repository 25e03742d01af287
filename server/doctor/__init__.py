"""`thinbridge doctor`: checks of this machine, one line each: the finding and, if something is wrong, the remedy."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from models.bundle.io import Bundle, open_bundle
from server.doctor.checks import Check, CheckResult, check_bundle, check_room_for, machine_checks
from server.doctor.gpu import gpu_bundle_checks, gpu_checks
from server.settings import Settings


def run_checks(settings: Settings, find_bundles: Mapping[str, Callable[[], Path]]) -> list[CheckResult]:
    """Run every check that the settings ask for. A check that breaks is a result, not an error.

    `find_bundles` has for each model's name what returns the folder of its bundle.
    """
    results = list(_run_all(machine_checks(settings)))
    if len(find_bundles) > 1:
        results += _run_all({"memory for all models": lambda: check_room_for(settings, find_bundles)})
    results += _run_all(gpu_checks(settings))
    for name, find_bundle in find_bundles.items():
        found = _run_all(_bundle_checks(settings, find_bundle))
        results += [replace(result, name=f"{result.name} of {name}") for result in found] if len(find_bundles) > 1 else found
    return results


def _bundle_checks(settings: Settings, find_bundle: Callable[[], Path]) -> dict[str, Check]:
    # The bundle's files are hashed once, for all checks that look into it.
    @cache
    def bundle() -> Bundle:
        return open_bundle(find_bundle())

    return {"bundle": lambda: check_bundle(find_bundle(), bundle), **gpu_bundle_checks(settings, bundle)}


def _run_all(checks: Mapping[str, Check]) -> Iterator[CheckResult]:
    for name, check in checks.items():
        if (result := _run_guarded(name, check)) is not None:
            yield result


def _run_guarded(name: str, check: Check) -> CheckResult | None:
    try:
        return check()
    except Exception as error:
        return CheckResult(name, f"the check failed: {error}", "see the error")
