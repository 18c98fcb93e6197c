"""Large imports go without Python's garbage collector, and it goes on afterwards."""

import gc
import weakref

import pytest

from bseq_plugin.cli.loading import loading


@pytest.fixture(autouse=True)
def as_before():
    """Objects that are frozen here are thawed, and the collector runs."""
    yield
    gc.unfreeze()
    gc.enable()


class Node:
    """May be weakly referenced."""


def cycle():
    """A weak reference to garbage that only the collector finds."""
    node = Node()
    node.itself = node
    return weakref.ref(node)


def test_the_collector_rests_inside_and_works_afterwards():
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()
    found = cycle()
    gc.collect()
    assert found() is None


def test_what_was_there_is_left_out_of_later_collections():
    before = gc.get_freeze_count()
    with loading():
        kept = [[] for _ in range(1000)]
    assert gc.get_freeze_count() >= before + len(kept)


def test_a_failed_import_leaves_the_collector_on():
    with pytest.raises(ModuleNotFoundError), loading():
        import no_such_module_at_all  # noqa: F401
    assert gc.isenabled()


def test_who_had_it_off_has_it_off():
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()
