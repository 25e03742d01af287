"""`thinbridge doctor`: checks of this machine, one line each: the finding and, if something is wrong, the remedy."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from models.bundle.io import Bundle, open_bundle
from server.doctor.checks import Check, CheckResult, machine_checks
from server.doctor.gpu import gpu_checks
from server.settings import Settings


def run_checks(settings: Settings, find_bundle: Callable[[], Path]) -> list[CheckResult]:
    """Run every check that the settings ask for. A check that breaks is a result, not an error."""

    # The bundle's files are hashed once, for all checks that look into it.
    @cache
    def bundle() -> Bundle:
        return open_bundle(find_bundle())

    checks = {**machine_checks(settings, find_bundle, bundle), **gpu_checks(settings, bundle)}
    results = [_run_guarded(name, check) for name, check in checks.items()]
    return [result for result in results if result is not None]


def _run_guarded(name: str, check: Check) -> CheckResult | None:
    try:
        return check()
    except Exception as error:
        return CheckResult(name, f"the check failed: {error}", "see the error")
