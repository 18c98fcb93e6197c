"""No pair of settings is accepted and ignored: each that a recipe takes is read by the code that trains it.

A read counts if code outside ``bseq_plugin.recipe`` looks at the setting, itself or through a property of a section.
Checks, copies and files of recipes do not count: they would look at a setting that nobody needs.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from recipe_settings import Contradiction, sections_of, settings

from bseq_plugin.data.events import Events
from bseq_plugin.errors import RecipeError
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.recipe.section import Section
from bseq_plugin.training.train import train

SETTINGS = {setting.key: setting for setting in settings()}
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


def is_read(frame):
    """Whether what this frame looks at is looked at from outside the package, maybe through its public names."""
    while frame is not None:
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if not module.startswith("bseq_plugin.recipe"):
            return module.startswith("bseq_plugin.")
        if name in WHOLE or name.startswith("_"):
            return False
        frame = frame.f_back
    return False


@pytest.fixture
def reads(monkeypatch):
    """Dotted keys that were read, as they are read."""
    keys, look = set(), Section.__getattribute__

    def noting(self, name):
        place = PLACES.get(type(self))
        if place is not None and name in type(self).model_fields and is_read(sys._getframe(1)):
            keys.add(place + name)
        return look(self, name)

    monkeypatch.setattr(Section, "__getattribute__", noting)
    return keys


def ignored(chosen, bare, log, items, reads, out):
    """Keys that were accepted and not read; None if the recipe, or the data, refused them."""
    try:
        recipe = BASE.replace(**sections_of(chosen, bare))
        reads.clear()
        run = train(log, recipe, out, items=items, progress=False)
    except (Contradiction, RecipeError):
        return None
    stored = Recipe.stored(run.recipe.as_dict(), Path(out))
    changed = [setting.key for setting, _ in chosen if setting.key not in reads]
    assert stored == run.recipe
    return changed


def test_x(log, items, reads, tmp_path):
    import time
    for setting in SETTINGS.values():
        for value in setting.others():
            t0=time.time()
            try:
                print(setting.key, value, ignored([(setting, value)], False, log, items, reads, tmp_path / f"{setting.key}-{value}"), round(time.time()-t0,2))
            except Exception as e:
                print("!!", setting.key, value, type(e), e)
