"""Conformance suite of item encoders.

from bseq_plugin.testing.item_encoders import ItemEncoderTests

class TestMine(ItemEncoderTests):
    item_encoder = MyItemEncoder
    items = pd.DataFrame({"item_id": [1, 2, 3], "name": ["lip balm", None, ""]})
    empty = (1, 2)
"""

# ruff: noqa: D102  (the names of the tests say what they check)

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from bseq_plugin.data.items import encode_items
from bseq_plugin.schema.encoders import ItemEncoder


class ItemEncoderTests:
    """Set ``item_encoder``, ``items``: a table of a few items that it can read, one of them known, and ``empty``: the
    places of those of which nothing is known. ``options`` if it needs some; ``atol`` of two calls on the same row.
    """

    item_encoder: ClassVar[type[ItemEncoder]]
    items: ClassVar[pd.DataFrame]
    empty: ClassVar[tuple[int, ...]]
    options: ClassVar[dict[str, Any]] = {}
    atol: ClassVar[float] = 1e-6

    def build(self) -> ItemEncoder:
        """The encoder under test."""
        return self.item_encoder(self.item_encoder.checked_options(self.options))

    def encoded(self, items: pd.DataFrame) -> np.ndarray:
        """What it gives, after the checks that training makes."""
        return encode_items([self.build()], items)

    def test_says_what_it_is_and_reads(self) -> None:
        encoder = self.build()
        assert isinstance(encoder.name, str)
        assert encoder.name
        assert encoder.description
        assert encoder.columns
        assert set(encoder.columns) <= set(self.items.columns)

    def test_nothing_known_is_zeros_and_something_is_not(self) -> None:
        known = self.encoded(self.items).any(1)
        assert np.flatnonzero(~known).tolist() == sorted(self.empty)
        assert known.any()

    def test_an_item_has_one_vector_in_whatever_table_it_stands(self) -> None:
        together = self.encoded(self.items)
        for place in range(len(self.items)):
            np.testing.assert_allclose(self.encoded(self.items.iloc[[place]])[0], together[place], atol=self.atol)
        order = np.random.default_rng(0).permutation(len(self.items))
        np.testing.assert_allclose(self.encoded(self.items.iloc[order]), together[order], atol=self.atol)

    def test_no_items(self) -> None:
        assert self.encoded(self.items.iloc[:0]).shape == (0, self.build().width)

    def test_only_its_own_columns_count(self) -> None:
        other = self.items.drop(columns=[c for c in self.items if c not in ("item_id", *self.build().columns)])
        other = other.assign(item_id=range(len(other), 0, -1), something_else="x")
        np.testing.assert_allclose(self.encoded(other), self.encoded(self.items), atol=self.atol)

    @pytest.mark.parametrize("missing", [None, np.nan])
    def test_missing_values_are_allowed(self, missing: float | None) -> None:
        bare = self.items.astype(object)
        for column in self.build().columns:
            bare[column] = missing
        assert not self.encoded(bare).any()

    def test_two_of_one_kind_are_the_same_and_the_table_stays_as_it_was(self) -> None:
        before = self.items.copy()
        assert self.build().identity == self.build().identity
        np.testing.assert_allclose(self.encoded(self.items), self.encoded(self.items), atol=self.atol)
        pd.testing.assert_frame_equal(self.items, before)
