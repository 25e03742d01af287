"""Files of a bundle: what a full disk says."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from export.bundle_parts import save_array


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_an_array_is_read_again_as_it_was(dtype: type, tmp_path: Path) -> None:
    given: npt.NDArray[Any] = np.arange(12, dtype=dtype).reshape(3, 4).T
    save_array(tmp_path / "a.npy", given)
    read = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, given)


def test_a_full_disk_has_the_number_of_its_error() -> None:
    with pytest.raises(OSError, match="No space left") as raised:
        save_array(Path("/dev/full"), np.zeros(2**20, np.float32))
    assert raised.value.errno == errno.ENOSPC
