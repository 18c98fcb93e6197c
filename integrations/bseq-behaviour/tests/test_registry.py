"""Heads by kind and name: one hook lists heads of all kinds; a head that says no kind is its plugin's error alone."""

import types

import bseq_behaviour as behaviour
import pytest
from bseq_behaviour import heads as builtin
from bseq_behaviour.contract.registry import KINDS, HeadManager, head_manager

import bseq_plugin as bseq


@pytest.fixture
def manager():
    """A fresh one: the process-wide manager is not touched."""
    return HeadManager()


def head(name, answer=None):
    return type(f"Head{name}", (), {"name": name} | ({"answer": answer} if answer else {}))


def plugin(*heads):
    """A plugin whose hook lists these heads."""
    return types.SimpleNamespace(bseq_heads=behaviour.hookimpl(lambda: list(heads)))


@pytest.mark.parametrize("kind", KINDS)
def test_two_heads_of_one_kind_and_name_are_refused_by_the_name_of_both(manager, kind):
    answer = kind.removesuffix(" head")
    manager.register(plugin(head("same", answer)), "one", distribution="dist-one")
    manager.register(plugin(head("same", answer)), "two", distribution="dist-two")
    with pytest.raises(bseq.PluginError) as caught:
        manager.part(kind, "same")
    for word in (kind, "'same'", "'one'", "dist-one", "'two'", "dist-two", "BSEQ_DISABLE_PLUGINS"):
        assert word in str(caught.value), word


def test_heads_are_told_apart_by_what_they_answer(manager):
    """The same name may be that of a head of each kind; a name of another kind is told."""
    manager.register(plugin(head("same", "count"), head("own", "count")), "one")
    manager.register(plugin(head("same", "sequence")), "two")
    assert manager.part("count head", "same") is not manager.part("sequence head", "same")
    assert manager.parts("binary head") == {}
    shown = {info.name: {kind: names for kind, names in info.parts.items() if names} for info in manager.infos()}
    assert shown == {"one": {"count head": ["own", "same"]}, "two": {"sequence head": ["same"]}}
    with pytest.raises(bseq.UsageError, match=r"unknown sequence head 'own'; there are: same. 'own' is a count head$"):
        manager.part("sequence head", "own")
    with pytest.raises(bseq.UsageError, match=r"unknown binary head 'x'; there are: \(none\)$"):
        manager.part("binary head", "x")


def test_a_head_of_no_kind_is_refused_and_the_rest_goes_on(manager):
    old, older, good = head("old"), head("older"), head("good", "binary")
    manager.register(plugin(old, older, good), "three", distribution="dist-three")
    manager.register(plugin(head("old")), "four", distribution="dist-four")
    manager.register(plugin(head("other", "count")), "five")
    assert manager.part("binary head", "good").name == "good"
    assert manager.part("count head", "other").name == "other"
    wrong = r"head 'old' has answer = None; subclass BinaryHead, CatalogueHead"
    for kind in ("binary head", "sequence head"):
        with pytest.raises(bseq.PluginError, match=rf"'three' \(dist-three\): {wrong}.*'four' \(dist-four\): {wrong}"):
            manager.part(kind, "old")
    for n in range(2):  # told once, however often the heads are collected
        manager.register(plugin(head(f"more-{n}", "count")), f"more-{n}")
        three, four, five = (info for info in manager.infos() if info.name in ("three", "four", "five"))
        assert three.error.count("has answer = None") == 2
        assert four.error.count("head 'old'") == 1
        assert five.error is None
        assert three.parts["binary head"] == ["good"]
        assert five.parts["count head"] == ["other"]
    with pytest.raises(
        bseq.UsageError, match=r"unknown binary head 'x'; there are: good\. plugin 'three' of dist-three"
    ):
        manager.part("binary head", "x")


def test_the_listing_has_what_failed_beside_what_goes_on(manager, monkeypatch, command):
    manager.register(plugin(head("old"), head("good", "binary")), "three")
    monkeypatch.setattr("bseq_behaviour.contract.registry.head_manager", lambda: manager)
    code, out, _ = command("heads")
    shown = " ".join(out.split())
    assert code == 0
    assert "failed: head 'old' has answer = None" in shown
    assert "binary head: good" in shown


def test_an_unknown_head_is_told_though_a_sibling_kind_is_torn(manager):
    for name in ("one", "two"):
        manager.register(plugin(head("same", "count")), name)
    with pytest.raises(bseq.UsageError, match=r"unknown binary head 'same'; there are: \(none\)$"):
        manager.part("binary head", "same")
    with pytest.raises(bseq.PluginError, match="count head name 'same' is given by plugin 'one'"):
        manager.part("count head", "same")


def test_the_heads_of_this_package_are_there_by_kind():
    found = {kind: sorted(head_manager().parts(kind)) for kind in KINDS}
    assert found == {
        "binary head": ["mlp", "mmoe"],
        "catalogue head": ["interests", "own_layer"],
        "count head": ["kept_share", "log_linear"],
        "sequence head": ["transformer"],
    }
    assert head_manager() is head_manager()
    assert builtin.bseq_heads()
