"""No pair of settings is accepted and ignored: each that a recipe takes is read by the code that trains it.

A read counts if code outside ``bseq_plugin.recipe`` looks at the setting, itself or through a property of a section.
Checks, copies and files of recipes do not count: they would look at a setting that nobody needs.
"""

import itertools
import random
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st
from recipe_settings import Contradiction, sections_of, settings

from bseq_plugin import Events, Recipe, RecipeError, UsageError, train
from bseq_plugin.recipe.merge import value_at
from bseq_plugin.recipe.section import Section

BASE = Recipe(encoder={"max_length": 10}, vectors={"dim": 8}, training={"epochs": 1, "batch": {"users": 16}})
# Of a recipe as a whole: they make another one, or a file of it.
WHOLE = {"as_dict", "parse", "stored", "load", "replace", "with_settings"}
N_USERS, N_ITEMS, LENGTH = 40, 25, 9


@pytest.fixture(scope="module")
def log():
    """200 days with every column that there is."""
    random, n = np.random.default_rng(0), N_USERS * LENGTH
    times = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(random.integers(0, 200 * 86_400, n), "s")
    return Events.from_frame(
        pd.DataFrame(
            {
                "user_id": np.repeat(np.arange(N_USERS), LENGTH),
                "item_id": random.integers(0, N_ITEMS, n),
                "timestamp": times,
                "event_type": random.choice(["buy", "view"], n),
                "session_id": np.arange(n) // 3,
                "value": random.random(n) * 10,
            }
        )
    )


@pytest.fixture(scope="module")
def items():
    return pd.DataFrame({"item_id": range(N_ITEMS), "kind": np.arange(N_ITEMS) % 3, "price": np.arange(N_ITEMS) + 0.5})


def places(section=Recipe, prefix=""):
    """(class of a section, where it stands)."""
    yield section, prefix
    for name, below in section.sections().items():
        yield from places(below, f"{prefix}{name}.")
    for name, choice in section.choices().items():
        for below in choice.classes:
            yield from places(below, f"{prefix}{name}.")


PLACES = dict(places())
KEYS = {setting.key for setting in settings()}


def is_read(frame):
    """Whether what this frame looks at is looked at from outside the package, maybe through its public names."""
    while frame is not None:
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if frame.f_code is not noting.__code__:
            if not module.startswith("bseq_plugin.recipe"):
                return module.startswith("bseq_plugin.")
            if name in WHOLE or name.startswith("_"):
                return False
        frame = frame.f_back
    return False


READ: set[str] = set()  # dotted keys
LOOK = Section.__getattribute__


def noting(self, name):
    """Attributes of a section, noted if they are settings that somebody needs."""
    key = f"{PLACES.get(type(self))}{name}"
    if key in KEYS and is_read(sys._getframe(1)):
        READ.add(key)
    return LOOK(self, name)


@pytest.fixture
def try_out(log, items, tmp_path, monkeypatch):
    """A function that trains a recipe with some settings: those of them that were ignored, or None if it was refused.

    Ignored is also what the run says to have had another value.
    """
    monkeypatch.setattr(Section, "__getattribute__", noting)
    numbers = itertools.count()

    def check(chosen, bare=False):
        try:
            recipe = BASE.replace(**sections_of(chosen, bare))
            READ.clear()
            run = train(log, recipe, tmp_path / str(next(numbers)), items=items, progress=False)
        except (Contradiction, UsageError):
            return None
        values = run.recipe.as_dict()
        return [s.key for s, value in chosen if s.key not in READ or value_at(values, s.key) != value]

    return check


@pytest.mark.parametrize(
    ("code", "keys"),
    [
        ("recipe.training.seed", {"training.seed"}),
        ("recipe.training.last_epoch", {"training.stop_after", "training.epochs"}),
        ("recipe.training.batch.n_batches(9, 9)", {"training.batch.users"}),
        ("recipe.popularity_days", {"objective.popularity_days"}),
        ("recipe.interest_dim", {"vectors.dim", "vectors.ensemble", "objective.popularity_days"}),
        ("recipe.replace(training={'epochs': 3}).with_settings(['loss=bce']), recipe == recipe, repr(recipe)", set()),
        ("type(recipe).parse(recipe.as_dict()), recipe.objective.model_copy(), recipe.split.model_dump()", set()),
    ],
)
def test_copies_and_checks_are_no_reads(monkeypatch, code, keys):
    recipe = Recipe(objective={"kind": "window", "popularity_days": [7.0]})
    monkeypatch.setattr(Section, "__getattribute__", noting)
    READ.clear()
    eval(code, {"__name__": "bseq_plugin.somewhere", "recipe": recipe})
    assert keys == READ


def told(chosen):
    return " and ".join(f"{setting.key} = {value!r}" for setting, value in chosen)


def test_every_setting_means_something_beside_another_one(try_out):
    """All settings in random pairs; one that can't stand beside its neighbour has to mean something alone."""
    chance = random.Random(0)
    every = settings()
    order = [(setting, chance.choice(setting.others())) for setting in chance.sample(every, len(every))]
    pairs = [order[n : n + 2] for n in range(0, len(order), 2)]
    ignored, refused = {}, []
    for pair in pairs:
        found = try_out(pair)
        refused += pair if found is None else []
        ignored |= {told(pair): found} if found else {}
    for setting, _ in refused:
        found = next(filter(None.__ne__, (try_out([(setting, value)]) for value in setting.others())), [setting.key])
        ignored |= {setting.key: found} if found else {}
    assert ignored == {}
    assert len(refused) < len(pairs)


def outside(chosen):
    """Whether one of the settings belongs to an alternative, or to another setting, that is not chosen here."""
    return any(sections_of([pair]) != sections_of([pair], bare=True) for pair in chosen)


def test_a_setting_outside_of_where_it_belongs_is_refused_or_read(try_out):
    """All pairs with a setting of another kind than the default one: accepted only beside what it needs."""
    accepted = []
    for pair in itertools.combinations(settings(), 2):
        chosen = [(setting, setting.others()[0]) for setting in pair]
        try:
            BASE.replace(**sections_of(chosen, bare=True))
        except (Contradiction, RecipeError):
            continue
        accepted += [chosen] if outside(chosen) else []
    ignored = {}
    for chosen in accepted:
        found = try_out(chosen, bare=True)
        ignored |= {told(chosen): found} if found else {}
    assert ignored == {}


CHOSEN = st.sampled_from(settings()).flatmap(
    lambda setting: st.tuples(st.just(setting), st.sampled_from(setting.others()))
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@given(chosen=st.lists(CHOSEN, min_size=2, max_size=2, unique_by=lambda pair: pair[0].key), bare=st.booleans())
@budget(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_pair_of_settings_is_accepted_and_ignored(try_out, chosen, bare):
    assert not try_out(chosen, bare), told(chosen)
