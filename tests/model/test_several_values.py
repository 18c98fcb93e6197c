"""Items with several values of an attribute: the mean of their vectors, whatever the order; one value is as before."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Events, Run, SchemaError, Vocabulary, train
from bseq_plugin.data.items import ItemAttributes
from bseq_plugin.model.items import ItemTower

GENRES = ["drama", "comedy", "crime", "war"]
VOCABULARY = Vocabulary(np.arange(1, 6), np.ones(5))
lists = st.one_of(st.none(), st.lists(st.sampled_from(GENRES), max_size=5))


@given(st.lists(lists, min_size=5, max_size=5), st.lists(st.sampled_from(["a", "b", None]), min_size=5, max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_mean_of_the_values_that_an_item_has(genres, shelves):
    """A loop over items in float64."""
    items = pd.DataFrame({"item_id": [5, 4, 3, 2, 1], "genres": pd.Series(genres, dtype=object), "shelf": shelves})
    attributes = ItemAttributes.from_frame(items, ["genres", "shelf"], VOCABULARY)
    torch.manual_seed(0)
    tower = ItemTower(3, attributes)
    table = tower.attribute_table.weight.detach().double().numpy()
    labels = sorted({one for own in genres for one in own or ()}), sorted({one for one in shelves if one})
    expected = np.zeros((6, 3))
    for row in range(6):
        own = {} if row == 0 else items.iloc[5 - row]
        for place, name in enumerate(["genres", "shelf"]):
            value, first = own.get(name), attributes.starts[place]
            several = {value} if isinstance(value, str) else set(value if isinstance(value, list) else ())
            codes = [first + 1 + labels[place].index(one) for one in several] or [first]
            expected[row] += table[codes].mean(0)
    np.testing.assert_allclose(tower.folded(torch.zeros(6, 3)).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose((tower.membership @ tower.attribute_table.weight).detach().numpy(), expected, atol=1e-6)
    part = tower.folded(torch.zeros(2, 2), 3, slice(1, 3))
    np.testing.assert_allclose(part.numpy(), expected[3:5, 1:], atol=1e-6)


def test_a_list_of_one_is_a_value_and_the_order_means_nothing(tiny_frame, tiny_recipe, tmp_path):
    """The losses of whole trainings."""
    events, ids = Events.from_frame(tiny_frame), sorted(tiny_frame.item_id.unique())
    recipe = tiny_recipe.with_settings(["items.attributes=['genres']"])

    def losses(name, genres):
        items = pd.DataFrame({"item_id": ids, "genres": pd.Series(genres, dtype=object)})
        done = train(events, recipe, tmp_path / name, items=items, progress=False)
        text = (Run(done.path).path / "metrics.jsonl").read_text()
        return [line.split('"loss": ')[1].split(",")[0] for line in text.splitlines()]

    single = [GENRES[n % 4] for n in range(len(ids))]
    assert losses("plain", single) == losses("lists", [[one] for one in single])
    several = [[GENRES[n % 4], GENRES[(n + 1) % 4]] for n in range(len(ids))]
    turned = [[own[1], own[0], own[1]] for own in several]
    assert losses("several", several) == losses("turned", turned) != losses("other", single)


def test_what_no_list_may_hold():
    for genres, told in (
        ([["a", None]], "in its list"),
        ([[["a"]]], "in its list"),
        ([{"a": 1}], "neither text nor numbers"),
    ):
        items = pd.DataFrame({"item_id": [1], "genres": pd.Series(genres, dtype=object)})
        with pytest.raises(SchemaError, match=f"column 'genres' of the items table.*{told}"):
            ItemAttributes.from_frame(items, ["genres"], VOCABULARY)
    items = pd.DataFrame({"item_id": [1, 2], "genres": pd.Series([["a", "b"], ["a"]], dtype=object)})
    with pytest.raises(SchemaError, match="has lists; a category here is one value"):
        ItemAttributes.from_frame(items, ["genres"], VOCABULARY).single("genres")
