"""Looks at other processes, which may end at any moment."""

from pathlib import Path


def has_ended(process_id: int) -> bool:
    """Return whether a process is gone, or a zombie that its parent has not looked at."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True
