"""How every process of the server writes its log: one line per record, on stderr."""

import logging


def configure_logging(level: int | str) -> None:
    """Log from `level` on; call it once per process."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Its warnings quote what a hostile body holds.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
