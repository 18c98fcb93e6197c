"""The item encoder ``columns``: against a loop over cells, and what it refuses."""

import hashlib
import math

import numpy as np
import pandas as pd
import pytest

from bseq_plugin import RecipeError, SchemaError, parse_options
from bseq_plugin.item_encoders.columns import ColumnsItemEncoder, ColumnsOptions
from bseq_plugin.testing.item_encoders import ItemEncoderTests

ITEMS = pd.DataFrame(
    {
        "item_id": [1, 2, 3, 4],
        "brand": ["a", None, "b", None],
        "price": [0.5, -1200.0, math.nan, None],
        "shelf": pd.Categorical(["x", None, "x", None]),
    }
)
OPTIONS = {"categories": ("brand", "shelf"), "numbers": ("price",), "buckets": 11}


class TestColumns(ItemEncoderTests):
    item_encoder = ColumnsItemEncoder
    items = ITEMS
    empty = (3,)
    options = OPTIONS


def test_a_category_of_integers_is_the_same_beside_a_missing_one():
    encoder = ColumnsItemEncoder(ColumnsOptions(categories=("department",), buckets=512))
    whole = pd.DataFrame({"item_id": [1, 2], "department": [3, 7]})
    holed = pd.DataFrame({"item_id": [1, 2], "department": [3, None]})
    np.testing.assert_array_equal(encoder.encode(whole)[0], encoder.encode(holed)[0])


def test_cell_by_cell():
    wanted = np.zeros((4, 12), np.float32)
    for row, item in enumerate(ITEMS.itertuples()):
        for column in ("brand", "shelf"):
            value = getattr(item, column)
            if isinstance(value, str):
                digest = hashlib.blake2b(f"{column}\0{value}".encode(), digest_size=8).digest()
                number = int.from_bytes(digest, "big")
                wanted[row, (number // 2) % 11] += -1 if number % 2 else 1
        if not (item.price is None or math.isnan(item.price)):
            wanted[row, 11] = math.log(item.price + math.sqrt(item.price**2 + 1))  # asinh
    found = ColumnsItemEncoder(ColumnsOptions(**OPTIONS)).encode(ITEMS)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_other_options_have_another_identity():
    one = ColumnsItemEncoder(ColumnsOptions(**OPTIONS)).identity
    assert ColumnsItemEncoder(ColumnsOptions(**{**OPTIONS, "buckets": 12})).identity != one


def test_what_is_no_number_is_refused():
    encoder = ColumnsItemEncoder(ColumnsOptions(numbers=("price",)))
    for bad in ("cheap", math.inf):
        with pytest.raises(SchemaError, match=f"column 'price' of the items table has '?{bad}"):
            encoder.encode(pd.DataFrame({"item_id": [1, 2], "price": [1, bad]}))
    with pytest.raises(RecipeError, match="name the columns to read"):
        parse_options(ColumnsOptions, {}, "options")
