"""What a check of this machine found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckResult:
    """One check's result. `advice` is empty where nothing has to be done."""

    name: str
    detail: str
    advice: str = ""

    def line(self) -> str:
        """One line, also where a library's error in it has several."""
        text = f"{self.name}: {self.detail}" + (f" -> {self.advice}" if self.advice else "")
        return ("FAIL " if self.advice else "ok   ") + " ".join(text.split())
