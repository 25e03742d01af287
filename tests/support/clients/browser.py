"""A page in a real, headless browser: the same few actions in Chromium and in Firefox."""

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0
FAR_HOST = "thinbridge.test"
"""A name of this machine that the browser does not know for its own."""


class Page(ABC):
    """One page of a browser. `log` has its warnings and errors."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @abstractmethod
    def load(self, url: str) -> None:
        """Load an address."""

    @abstractmethod
    def run(self, script: str) -> Any:
        """Return the value of an expression or of its promise, as if a user had asked for it. Raises `RuntimeError`."""

    @abstractmethod
    def screenshot(self, path: Path) -> None:
        """Write a PNG of what the window shows."""

    def open(self, url: str) -> None:
        """Load an address and wait for it."""
        self.load(url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def wait_for(self, condition: str, timeout_s: float = 20.0) -> None:
        """Return once an expression is true. Raises `TimeoutError` with what the page logged."""
        deadline_s = time.monotonic() + timeout_s
        while not self.run(condition):
            if time.monotonic() > deadline_s:
                raise TimeoutError(
                    f"{condition} did not come true; the page says {self.run('document.body.innerText')!r}, {self.log}"
                )
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return str(self.run(f"document.querySelector({selector!r}).innerText"))

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({selector!r}).click()")
