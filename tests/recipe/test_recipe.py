"""A recipe as it is written: what means nothing can't be, what is written is read back, and settings over it."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import settings as budget
from hypothesis import strategies as st
from pydantic import ValidationError
from recipe_settings import NAMES, TEXTS, Contradiction, merged, sections_of, settings
from toml_text import toml_file, words

from bseq_plugin import Recipe, RecipeError, UsageError
from bseq_plugin.recipe.files import shipped_recipes

# What the flat recipe of bseq 0.1 accepted and ignored, by its names of then: (sections of now, what is said).
SILENT = {
    "window_days with next-item targets": ({"objective": {"days": 7}}, "objective.days"),
    "n_windows with next-item targets": ({"objective": {"n": 3}}, "objective.n"),
    "passes_per_epoch with next-item targets": ({"objective": {"passes_per_epoch": 2}}, "objective.passes_per_epoch"),
    "mask_share with next-item targets": ({"objective": {"share": 0.4}}, "objective.share"),
    "sampling with all candidates": ({"negatives": {"kind": "all", "n": 64}}, "negatives.n"),
    "temperature with inner scores": ({"vectors": {"similarity": {"temperature": 0.3}}}, "vectors.similarity.temp"),
    "n_interests with one interest": ({"interests": {"n": 4}}, "interests.n"),
    "interest_method with one interest": ({"interests": {"method": "routing"}}, "interests.method"),
    "interests_by_length with one interest": ({"interests": {"by_length": True}}, "interests.by_length"),
    "validation_at with leave-one-out": ({"split": {"validation_at": "2024-01-01T00:00Z"}}, "split.validation_at"),
    "test_at = nonsense with leave-one-out": ({"split": {"test_at": "nonsense"}}, "split.test_at"),
    "horizon_days with leave-one-out": ({"split": {"horizon_days": 7}}, "split.horizon_days"),
    "prior_events without item encoders": ({"items": {"prior_events": 9}}, "prior_events = 9.0 goes with encoders"),
    "id_dropout without item encoders": ({"items": {"id_dropout": 0.1}}, "items.id_dropout"),
    "item_fusion = sum without item encoders": ({"items": {"fusion": "sum"}}, "items.fusion"),
    "batch_users beside batch_events": ({"training": {"batch": {"users": 9, "events": 99}}}, "users or events"),
}


@pytest.mark.parametrize("name", SILENT)
def test_what_meant_nothing_can_not_be_written(name):
    """In Python, in a file, and over a recipe; the message has the key as it is written now."""
    sections, said = SILENT[name]
    for write in (
        lambda: Recipe(**sections),
        lambda: Recipe.parse(json.loads(json.dumps(sections))),
        lambda: Recipe().replace(**sections),
        lambda: Recipe().with_settings(words(sections)),
    ):
        with pytest.raises(RecipeError, match=said) as caught:
            write()
        assert "\n" not in str(caught.value)


OPTIONS = st.dictionaries(
    NAMES, st.booleans() | st.integers() | TEXTS | st.lists(st.integers(0, 9), max_size=2), max_size=2
)


@st.composite
def recipes(draw):
    """Some settings at any values, with what they need, and options of parts that nobody knows."""
    chosen = draw(st.lists(st.sampled_from(settings()), max_size=6, unique_by=lambda setting: setting.key))
    options = {name: draw(OPTIONS) for name in ("encoder", "loss")}
    try:
        return Recipe(**merged(sections_of((setting, draw(setting.drawn())) for setting in chosen), options))
    except (Contradiction, RecipeError):
        assume(False)


@given(recipes())
@budget(max_examples=80, deadline=None)
def test_a_recipe_is_read_back_as_it_was_written(tmp_path_factory, recipe):
    """From plain values, from JSON, from a TOML file, and from settings over the default recipe."""
    values = recipe.as_dict()
    assert Recipe.parse(values) == recipe
    text = json.dumps(values)
    assert Recipe.parse(json.loads(text)) == recipe
    assert json.dumps(Recipe.parse(json.loads(text)).as_dict()) == text
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    path.write_text(toml_file(values), encoding="utf-8")
    assert Recipe.load(path) == recipe
    assert Recipe().with_settings(words(values)) == recipe
    assert recipe.replace(**values) == recipe
    assert recipe.replace() == recipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_read_back_too(tmp_path, name):
    path = tmp_path / "recipe.toml"
    path.write_text(toml_file(Recipe.load(name).as_dict()))
    assert Recipe.load(path) == Recipe.load(name)


@given(st.permutations(["objective=window", "objective.days=7", "objective.n=3", "negatives=mixed", "negatives.n=9"]))
@budget(max_examples=40, deadline=None)
def test_a_kind_comes_first_whatever_the_order(said):
    assert Recipe().with_settings(said) == Recipe(
        objective={"kind": "window", "days": 7, "n": 3}, negatives={"kind": "mixed", "n": 9}
    )


def test_another_kind_keeps_what_both_have_and_drops_the_rest():
    window = Recipe(
        encoder={"name": "causal", "max_length": 9, "dropout": 0.3, "n_blocks": 5},
        vectors={"similarity": {"kind": "cosine", "temperature": 0.5}},
        objective={"kind": "window", "days": 7, "event_types": ["buy"]},
        negatives={"kind": "uniform", "n": 9},
        split={"kind": "time", "horizon_days": 7, "patience": 2},
    )
    said = ["objective=prefix", "encoder=gru", "vectors.similarity=inner", "negatives.kind=mixed", "split=none"]
    wanted = Recipe(
        encoder={"name": "gru", "max_length": 9, "dropout": 0.3},
        objective={"kind": "prefix", "event_types": ["buy"]},
        negatives={"kind": "mixed", "n": 9},
        split="none",
    )
    assert window.with_settings(said) == wanted
    sections = {"objective": "prefix", "encoder": "gru", "negatives": {"kind": "mixed"}, "split": "none"}
    assert window.replace(**sections, vectors={"similarity": "inner"}) == wanted
    assert window.with_settings(["objective=window", "encoder=causal", "split.kind=time"]) == window
    assert window.replace(split="leave_one_out").split == Recipe(split={"patience": 2}).split


def test_the_last_of_two_values_counts_and_a_table_is_its_keys():
    said = ["training.epochs=3", "training={epochs = 4, dense = {rate = 0.5}}", "training.seed=7", "training.seed=8"]
    assert Recipe().with_settings(said) == Recipe(training={"epochs": 4, "dense": {"rate": 0.5}, "seed": 8})
    assert Recipe().with_settings(['encoder={name = "gru", hidden = 3}']) == Recipe(
        encoder={"name": "gru", "hidden": 3}
    )


def test_a_section_as_an_object_takes_the_place_of_all_of_it():
    recipe = Recipe(objective={"kind": "window", "days": 7, "event_types": ["buy"]})
    assert recipe.replace(objective=Recipe(objective="window").objective) == Recipe(objective="window")


def test_the_size_of_a_batch_is_one_of_two():
    events = Recipe().with_settings(["training.batch.events=99"])
    assert (events.training.batch.events, events.training.batch.users) == (99, None)
    assert events.with_settings(["training.batch.users=9"]) == Recipe(training={"batch": {"users": 9}})
    assert Recipe().replace(training={"batch": {"events": 99}}) == events
    for both in (["training.batch.events=99", "training.batch.users=9"], ["training.batch={events = 99, users = 9}"]):
        with pytest.raises(RecipeError, match=r"training.batch.* write users or events, one of them"):
            Recipe().with_settings(both)


REFUSED = {
    "objective.days=7": [
        "unknown key 'objective.days' with kind = 'next'",
        "the keys are: event_type_weights, event_types, kind",
        "there is objective.days (with objective.kind = 'window')",
    ],
    "objective=prefix objective.days=7": ["unknown key 'objective.days' with kind = 'prefix'"],
    "negatives.n=9": ["with kind = 'all'", "(with negatives.kind = 'uniform' or 'popularity' or 'mixed')"],
    "split=none split.patience=3": ["unknown key 'split.patience' with kind = 'none'", "split.kind = 'time'"],
    "split.horizon_days=7": ["(with split.kind = 'time')"],
    "dim=8": ["unknown key 'dim'", "the keys are: encoder, events,", "there is vectors.dim"],
    "training.rate=1": ["unknown key 'training.rate'", "training.dense.rate and training.table.rate"],
    "training.batch.evnts=9": ["unknown key 'training.batch.evnts'; the keys are: events, users"],
    "sharding=row_wise": ["unknown key 'sharding'"],
    "objective=windw": ["objective.kind = 'windw'", "'next', 'prefix', 'window', 'masked'"],
    "objective=7": ["objective = 7"],
    "vectors=8": ["vectors = 8", "its keys are: dim, ensemble, init, similarity"],
    "vectors.dim=0": ["vectors.dim = 0"],
    "vectors.dim=wide": ["vectors.dim = 'wide'"],
    "vectors.dim.x=1": ["'vectors.dim' has no keys below it"],
    "vectors.ensemble=2 vectors.similarity=cosine": ["ensemble = 2 averages inner products"],
    "events.features=[] events.time_zone=Asia/Tokyo": ["time_zone = 'Asia/Tokyo'", "'time_of_week'"],
    "interests=several": ["interests.kind = 'several'", "objective.kind = 'prefix' or 'window'"],
    "training.batch.events=9": ["training.batch.events = 9", "encoder.max_length = 50"],
    "training.epochs=3 training.stop_after=4": ["stop_after = 4 lies beyond epochs = 3"],
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_setting_that_can_not_be_meant_is_told_in_one_line(said):
    """With the keys there are, and where the key is."""
    with pytest.raises(RecipeError) as caught:
        Recipe().with_settings(said.split())
    told = str(caught.value)
    assert told.startswith("--set")
    assert "\n" not in told
    for part in REFUSED[said]:
        assert part in told, (part, told)


NOT_PLAIN = {
    "nan": ({"encoder": {"name": "mean", "half_life_days": float("nan")}}, "encoder: half_life_days = nan: .*finite"),
    "infinity": ({"encoder": {"name": "mean", "half_life_days": float("inf")}}, "half_life_days = inf: .*finite"),
    "nan in a list": ({"loss": {"name": "softmax", "x": [0.5, float("nan")]}}, r"loss: x = \[0.5, nan\]"),
    "null": (
        {"encoder": {"name": "theirs", "blocks": None}},
        "encoder: blocks: a recipe has no null; leave the key out",
    ),
    "null below": ({"items": {"encoders": [{"name": "theirs", "x": [{"y": None}]}]}}, "x: a recipe has no null"),
    "a thing": ({"encoder": {"name": "theirs", "x": object()}}, "x = <object .*give plain"),
    "true": ({"training": {"epochs": True}}, "training: epochs = true: give a number"),
    "true for what may be left out": ({"training": {"stop_after": True}}, "stop_after = true: give a number"),
    "false": ({"encoder": {"dropout": False}}, "encoder: dropout = false: give a number"),
    "a seed no generator takes": ({"training": {"seed": 10**23}}, "training.seed = 1000.* less than"),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_a_file_would_not_give_back_is_refused(name):
    sections, said = NOT_PLAIN[name]
    for write in (lambda: Recipe(**sections), lambda: Recipe().replace(**sections)):
        with pytest.raises(RecipeError, match=said):
            write()


@pytest.mark.parametrize("said", [".encoder=3", "encoder.=mean", "training..seed=3", "=3"])
def test_an_empty_part_of_a_key_is_no_key(said):
    with pytest.raises(UsageError, match="write (for example|key=value)"):
        Recipe().with_settings([said])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2020-01-01", "2020-01-01"),
        ("[2020-01-01, 07:30:00]", ["2020-01-01", "07:30:00"]),
        ("{a = 2020-01-01T00:00:00Z}", {"a": "2020-01-01T00:00:00+00:00"}),
        ("3\ny = 4", "3\ny = 4"),
        ("[" * 5_000, "[" * 5_000),
    ],
)
def test_a_value_is_what_was_written(tmp_path, written, read):
    """Dates as their text; a second line is no second key; and a file says the same, with a byte order mark or not."""
    assert Recipe().with_settings([f"encoder.x={written}"]).encoder.options == {"x": read}
    if not isinstance(read, str) or (written == read and "\n" not in written and "[" not in written):
        (tmp_path / "mine.toml").write_text(f"[encoder]\nx = {written}\n", encoding="utf-8-sig")
        assert Recipe.load(tmp_path / "mine.toml").encoder.options == {"x": read}


def test_a_key_in_quotes_may_have_dots():
    said = ['objective.event_type_weights."a.b"=2', "objective.event_type_weights.c d=3"]
    assert Recipe().with_settings(said).objective.event_type_weights == {"a.b": 2.0, "c d": 3.0}


def test_a_recipes_attributes_can_not_be_set():
    for owner, key in ((Recipe(), "encoder"), (Recipe().training, "epochs")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(owner, key, getattr(owner, key))
