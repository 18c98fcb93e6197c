import importlib.metadata
import json
import types

import pluggy
import pytest

from bseq_plugin import PluginError, PluginManager, UsageError, hookimpl, plugin_manager, plugins
from bseq_plugin.cli.plugin_commands import HOOK
from bseq_plugin.hookspecs import API_VERSION
from bseq_plugin.plugins import ALLOW_ENV, DENY_ENV, PART_HOOKS, hook_names


@pytest.fixture(autouse=True)
def no_switches(monkeypatch):
    monkeypatch.delenv(ALLOW_ENV, raising=False)
    monkeypatch.delenv(DENY_ENV, raising=False)


@pytest.fixture
def manager():
    """A fresh one: the process-wide manager is not touched."""
    return PluginManager()


def part(name):
    return type(f"Part{name}", (), {"name": name})


def plugin(*names, hook="bseq_encoders", **extra):
    """A plugin whose one hook lists parts of these names."""
    module = types.SimpleNamespace(**extra)
    parts = [part(name) for name in names]

    def listed():
        return parts

    setattr(module, hook, hookimpl(listed))
    return module


class Distribution:
    def __init__(self, name, version):
        self.name, self.version = name, version


class EntryPoint:
    """What ``load_entry_points`` uses of an entry point; ``loaded`` may be an exception."""

    def __init__(self, name, loaded, distribution=None, version="1.0"):
        self.name, self.loaded = name, loaded
        self.dist = Distribution(distribution or f"dist-{name}", version)

    def load(self):
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


def names(manager):
    return [info.name for info in manager.infos()]


def test_two_plugins_of_one_name_are_refused_by_the_name_of_both(manager):
    manager.register(plugin("a"), "mine", distribution="dist-one")
    with pytest.raises(PluginError, match=r"'mine' is given by dist-two and by dist-one; uninstall one"):
        manager.register(plugin("b"), "mine", distribution="dist-two")
    assert sorted(manager.parts("encoder")) == ["a"]


@pytest.mark.parametrize(("kind", "hook"), list(PART_HOOKS.items()))
def test_two_parts_of_one_name_are_refused_by_the_name_of_both(manager, kind, hook):
    manager.register(plugin("same", hook=hook), "one", distribution="dist-one")
    manager.register(plugin("same", hook=hook), "two", distribution="dist-two")
    with pytest.raises(PluginError) as caught:
        manager.part(kind, "same")
    for word in (kind, "'same'", "'one'", "dist-one", "'two'", "dist-two", DENY_ENV):
        assert word in str(caught.value), word


def test_one_name_may_stand_for_parts_of_different_kinds(manager):
    manager.register(plugin("same"), "one")
    manager.register(plugin("same", hook="bseq_losses"), "two")
    assert manager.part("encoder", "same") is not manager.part("loss", "same")


def test_a_project_of_its_own_has_its_own_hooks_group_and_kinds(monkeypatch):
    """As a distribution makes one that has parts of a kind that bseq does not know."""

    class Specs:
        @pluggy.HookspecMarker("own")
        def bseq_filters(self):
            """Filters."""

    class Even:
        name, kind = "even", "strict filter"

    class Odd:
        name, kind = "odd", "loose filter"

    class Manager(PluginManager):
        def is_of_kind(self, kind, part, plugin):
            return part.kind == kind

    module = types.SimpleNamespace(bseq_filters=pluggy.HookimplMarker("own")(lambda: [Even, Odd]))
    groups = {"own": [EntryPoint("mine", module)]}
    monkeypatch.setattr(plugins.importlib.metadata, "entry_points", lambda group: groups.get(group, []))
    manager = Manager("own", Specs, {"strict filter": "bseq_filters", "loose filter": "bseq_filters"})
    manager.load_entry_points()
    assert manager.part("strict filter", "even") is Even
    assert [info.parts for info in manager.infos()] == [{"strict filter": ["even"], "loose filter": ["odd"]}]
    with pytest.raises(UsageError, match="unknown strict filter 'odd'; there are: even"):
        manager.part("strict filter", "odd")
    with pytest.raises(PluginError, match="The hooks are: bseq_filters"):
        manager.register(types.SimpleNamespace(typo=pluggy.HookimplMarker("own")(lambda: [Even])), "other")


def test_the_listing_has_what_failed(manager, monkeypatch, bseq):
    manager.load_entry_points([EntryPoint("bad", ImportError("[libfoo] is not there"))])
    monkeypatch.setattr(plugins, "plugin_manager", lambda: manager)
    code, out, _ = bseq("plugins")
    assert (code, "failed: ImportError: [libfoo] is not there" in " ".join(out.split())) == (0, True)


def test_a_misspelt_hook_lists_the_hooks_and_leaves_nothing_behind(manager):
    with pytest.raises(PluginError) as caught:
        manager.register(plugin("a", hook="bseq_encodrs"), "typo", distribution="dist-typo")
    for word in ("'typo'", "dist-typo", "bseq_encodrs", *hook_names()):
        assert word in str(caught.value), word
    assert names(manager) == []
    manager.register(plugin("a"), "typo")  # the corrected plugin is welcome
    assert sorted(manager.parts("encoder")) == ["a"]


def test_a_hook_with_a_wrong_argument_is_refused_in_our_words(manager):
    wrong = types.SimpleNamespace()

    def bseq_read_events(sauce):
        return None

    wrong.bseq_read_events = hookimpl(bseq_read_events)
    with pytest.raises(PluginError, match=r"(?s)'wrong' \(dist-wrong\).*sauce"):
        manager.register(wrong, "wrong", distribution="dist-wrong")
    assert names(manager) == []
    assert manager.hook.bseq_read_events(source=1, columns=None, timestamp_unit=None) is None
    manager.register(plugin("a"), "wrong")
    assert sorted(manager.parts("encoder")) == ["a"]


def test_a_hook_that_raises_is_named_and_stays_the_cause(manager):
    broken = plugin("x")

    def bseq_encoders():
        raise KeyError("no weights here")

    broken.bseq_encoders = hookimpl(bseq_encoders)
    manager.register(broken, "broken", distribution="dist-broken")
    manager.register(plugin("fine", hook="bseq_losses"), "fine")
    with pytest.raises(PluginError, match=r"'broken' \(dist-broken\) failed in bseq_encoders\(\): KeyError") as caught:
        manager.part("encoder", "x")
    assert isinstance(caught.value.__cause__, KeyError)
    assert f"{DENY_ENV}=broken" in str(caught.value)
    assert manager.part("loss", "fine").name == "fine"


@pytest.mark.parametrize("given", [[object()], ["name"], [type("NoName", (), {})], [type("Empty", (), {"name": ""})]])
def test_a_list_hook_has_to_give_classes_with_names(manager, given):
    module = types.SimpleNamespace()

    def bseq_encoders():
        return given

    module.bseq_encoders = hookimpl(bseq_encoders)
    manager.register(module, "odd")
    with pytest.raises(PluginError, match=r"'odd': bseq_encoders\(\) gave .* a class with a `name`"):
        manager.parts("encoder")


def test_a_broken_import_is_reported_and_the_rest_go_on(manager):
    cause = ImportError("libfoo.so is not there")
    manager.load_entry_points(
        [EntryPoint("bad", cause), EntryPoint("builtin", plugin("a")), EntryPoint("good", plugin("b"))]
    )
    assert sorted(manager.parts("encoder")) == ["a", "b"]
    bad = next(info for info in manager.infos() if info.name == "bad")
    assert (bad.distribution, bad.error) == ("dist-bad", "ImportError: libfoo.so is not there")
    with pytest.raises(
        UsageError, match=r"unknown encoder 'c'; there are: a, b\..*'bad' of dist-bad failed: ImportErr"
    ) as caught:
        manager.part("encoder", "c")
    assert caught.value.__cause__ is cause


def test_a_misspelt_hook_of_an_installed_plugin_stops_the_start_and_says_how_to_go_on(manager, monkeypatch):
    points = [EntryPoint("a-typo", plugin("x", hook="bseq_encodrs")), EntryPoint("good", plugin("b"))]
    with pytest.raises(PluginError, match=f"'a-typo' .dist-a-typo.*bseq_encodrs.*{DENY_ENV}=a-typo leaves it out"):
        manager.load_entry_points(points)
    monkeypatch.setenv(DENY_ENV, "a-typo")
    manager.load_entry_points(points)
    assert sorted(manager.parts("encoder")) == ["b"]


def test_two_distributions_with_one_entry_point_name_are_named(manager):
    points = [EntryPoint("same", plugin("a"), "dist-one"), EntryPoint("same", plugin("b"), "dist-two")]
    with pytest.raises(PluginError, match="'same' is given by dist-two and by dist-one"):
        manager.load_entry_points(points)


def test_the_same_entry_point_twice_is_loaded_once(manager):
    """An editable install can list its distribution twice."""
    module = plugin("a")
    manager.load_entry_points([EntryPoint("same", module, "dist"), EntryPoint("same", module, "dist")])
    assert names(manager) == ["same"]


def test_a_plugin_for_another_api_is_skipped_with_the_reason(manager):
    manager.load_entry_points(
        [
            EntryPoint("old", plugin("x", bseq_api_version=API_VERSION + 1)),
            EntryPoint("now", plugin("y", bseq_api_version=API_VERSION)),
        ]
    )
    old = next(info for info in manager.infos() if info.name == "old")
    assert f"written for plugin API {API_VERSION + 1}, this is {API_VERSION}" in old.error
    assert sorted(manager.parts("encoder")) == ["y"]
    with pytest.raises(UsageError, match="unknown encoder 'x'.*plugin API") as caught:
        manager.part("encoder", "x")
    assert isinstance(caught.value.__cause__, PluginError)


def test_the_builtin_parts_come_first(manager):
    manager.load_entry_points([EntryPoint("aaa", plugin("b")), EntryPoint("builtin", plugin("a"))])
    assert names(manager) == ["builtin", "aaa"]


@pytest.mark.parametrize(
    ("variable", "value", "loaded"),
    [
        (ALLOW_ENV, "one", ["builtin", "one"]),
        (ALLOW_ENV, " one , two ", ["builtin", "one", "two"]),
        (ALLOW_ENV, "nobody", ["builtin"]),
        (ALLOW_ENV, "", ["builtin", "one", "two"]),
        (DENY_ENV, "one", ["builtin", "two"]),
        (DENY_ENV, "one,two", ["builtin"]),
        (DENY_ENV, "builtin", ["builtin", "one", "two"]),
        (DENY_ENV, "", ["builtin", "one", "two"]),
    ],
)
def test_environment_switches(manager, monkeypatch, variable, value, loaded):
    monkeypatch.setenv(variable, value)
    manager.load_entry_points(
        [EntryPoint("two", plugin("c")), EntryPoint("one", plugin("b")), EntryPoint("builtin", plugin("a"))]
    )
    assert names(manager) == loaded


def test_a_denied_plugin_is_not_even_imported(manager, monkeypatch):
    monkeypatch.setenv(DENY_ENV, "bad")
    manager.load_entry_points([EntryPoint("bad", ImportError("never"))])
    assert names(manager) == []


def digest(*points):
    manager = PluginManager()
    manager.load_entry_points(points)
    return manager.digest()


def test_digests_are_equal_exactly_for_equal_plugins():
    base = digest(EntryPoint("one", plugin("a")), EntryPoint("two", plugin("b")))
    assert base == digest(EntryPoint("two", plugin("b")), EntryPoint("one", plugin("a")))
    others = [
        digest(EntryPoint("one", plugin("a"))),
        digest(EntryPoint("one", plugin("a"), version="1.1"), EntryPoint("two", plugin("b"))),
        digest(EntryPoint("one", plugin("a"), "dist-else"), EntryPoint("two", plugin("b"))),
        digest(EntryPoint("one", plugin("a", "c")), EntryPoint("two", plugin("b"))),
        digest(EntryPoint("one", ImportError("x")), EntryPoint("two", plugin("b"))),
        digest(EntryPoint("one", plugin("a", hook="bseq_losses")), EntryPoint("two", plugin("b"))),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_builtin_parts_are_found_by_name():
    found = {kind: plugin_manager().parts(kind) for kind in PART_HOOKS}
    assert {"causal", "mean"} <= set(found["encoder"])
    assert {"softmax", "bce"} <= set(found["loss"])
    assert {"exact", "faiss_cpu", "faiss_gpu"} <= set(found["index"])
    assert len(found["ranking feature"]) >= 15
    for kind, parts in found.items():
        for name, cls in parts.items():
            assert cls.name == name
            assert plugin_manager().part(kind, name) is cls


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UsageError) as caught:
        plugin_manager().part("encoder", "gru5rec")
    assert str(caught.value).startswith("unknown encoder 'gru5rec'; there are: ")
    for name in plugin_manager().parts("encoder"):
        assert name in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_entry_point_of_the_builtin_parts_is_installed():
    points = importlib.metadata.entry_points(group="bseq")
    assert {"builtin"} <= {point.name for point in points}
    assert json.loads(json.dumps([info.parts for info in plugin_manager().infos()]))


def test_a_missing_or_broken_builtin_is_an_error_with_its_cause(monkeypatch):
    monkeypatch.setattr(plugins.importlib.metadata, "entry_points", lambda group: [])
    plugin_manager.cache_clear()
    try:
        with pytest.raises(PluginError, match="pip install -e"):
            plugin_manager()
        cause = ImportError("torn install")
        monkeypatch.setattr(plugins.importlib.metadata, "entry_points", lambda group: [EntryPoint("builtin", cause)])
        with pytest.raises(PluginError, match="built-in parts failed to load") as caught:
            plugin_manager()
        assert caught.value.__cause__ is cause
    finally:
        plugin_manager.cache_clear()


@pytest.mark.parametrize("hook", hook_names())
def test_every_hook_is_documented_and_lists_parts_or_is_a_first_result_or_adds_commands(hook):
    from bseq_plugin.hookspecs import BseqSpecs

    assert getattr(BseqSpecs, hook).__doc__
    manager = pluggy.PluginManager("bseq")
    manager.add_hookspecs(BseqSpecs)
    lists_parts, first_result = hook in PART_HOOKS.values(), getattr(manager.hook, hook).spec.opts["firstresult"]
    assert lists_parts + first_result + (hook == HOOK) == 1
