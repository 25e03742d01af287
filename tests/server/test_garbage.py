"""A process that has started looks through what it keeps once, and not again and again while it serves."""

import gc
from collections.abc import Iterator

import pytest

from server.garbage import leave_out_present_objects


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_present_objects_are_left_out_of_collections_and_later_ones_are_not() -> None:
    present: list[object] = [[]]
    leave_out_present_objects()
    later: list[object] = [[]]
    assert gc.get_freeze_count() > 0
    looked_at = {id(each) for each in gc.get_objects()}
    assert id(present) not in looked_at
    assert id(later) in looked_at


def test_rubbish_of_the_start_is_collected_before() -> None:
    class Rubbish:
        pass

    rubbish = Rubbish()
    rubbish.__dict__["itself"] = rubbish
    kept = len([each for each in gc.get_objects() if type(each) is Rubbish])
    del rubbish
    leave_out_present_objects()
    gc.unfreeze()
    assert len([each for each in gc.get_objects() if type(each) is Rubbish]) == kept - 1
