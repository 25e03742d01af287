"""The clock of the server's processes, which can be made to jump, by libfaketime.

The system's own clock stays as it is. The monotonic clock does not jump either, as it cannot where a clock is set. Confined
decoders get no environment, and with it no other clock.
"""

from pathlib import Path

LIBRARIES = ("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1")


class Clock:
    """The clock of processes that are started with `variables`."""

    def __init__(self, library: str, file: Path) -> None:
        """`file` holds by how much the clock is wrong; processes read it every second."""
        self._file = file
        self.set_back_or_forth(0)
        self.variables = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set_back_or_forth(self, seconds: int) -> None:
        """Let the clock be wrong by so much."""
        self._file.write_text(f"{seconds:+d}\n", encoding="ascii")


def find_library() -> str | None:
    """Return the path of libfaketime, or None where it (Debian's package `libfaketime`) is not installed."""
    return next((each for each in LIBRARIES if Path(each).exists()), None)


def find_clock(folder: Path) -> Clock | None:
    """Return a clock whose file is in the folder, or None where libfaketime is not installed."""
    library = find_library()
    return None if library is None else Clock(library, folder / "clock")
