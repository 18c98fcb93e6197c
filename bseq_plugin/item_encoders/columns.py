"""Categories and numbers of an item as one vector, without anything to learn or to remember.

Categories by feature hashing (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009): a
value that was never seen has its place too, and nothing has to be fitted or stored. Shape letters: N items, E width.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from bseq_plugin.errors import SchemaError
from bseq_plugin.schema.encoders import ItemEncoder
from bseq_plugin.schema.item_values import item_values
from bseq_plugin.schema.options import PartOptions


class ColumnsOptions(PartOptions):
    """Options of ``columns``."""

    categories: tuple[str, ...] = Field((), description="columns whose values are names")
    numbers: tuple[str, ...] = Field((), description="columns whose values are amounts")
    buckets: int = Field(256, ge=1, le=65_536, description="places that all categories share")

    @model_validator(mode="after")
    def _something(self) -> ColumnsOptions:
        if not self.categories and not self.numbers:
            raise ValueError("name the columns to read: categories = [...], numbers = [...]")
        return self


class ColumnsItemEncoder(ItemEncoder[ColumnsOptions]):
    """An encoder that puts +1 or -1 in a place of ``buckets`` for each category, then asinh of each number; 0 for a
    missing value.

    asinh is nearly the value up to 1 and its logarithm beyond, for either sign: prices and counts come to one scale
    without a mean and a deviation that would have to be stored.
    """

    name = "columns"
    description = "categories of the items table, hashed, and its numbers"

    @property
    def width(self) -> int:
        """The width E: ``buckets``, if there are categories, and a column for each number."""
        return (self.options.buckets if self.options.categories else 0) + len(self.options.numbers)

    @property
    def identity(self) -> str:
        """The sha256 of name and options."""
        return hashlib.sha256(json.dumps([self.name, self.options.model_dump()], sort_keys=True).encode()).hexdigest()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of both kinds."""
        return (*self.options.categories, *self.options.numbers)

    def encode(self, items: pd.DataFrame, progress: bool = False) -> np.ndarray:
        """Return float32 [N, E]. Raises SchemaError for a column of numbers that has something else."""
        vectors_NE = np.zeros((len(items), self.width), np.float32)
        for column in self.options.categories:
            own, found = item_values(items[column])
            codes, values = pd.factorize(found)
            signed = [_place(column, value, self.options.buckets) for value in values]
            places = np.array(signed, np.int64).reshape(-1, 2)
            np.add.at(vectors_NE, (own, places[codes, 0]), places[codes, 1])
        first = self.width - len(self.options.numbers)
        for place, column in enumerate(self.options.numbers, start=first):
            vectors_NE[:, place] = np.arcsinh(_numbers(items[column]))
        return vectors_NE


def _place(column: str, value: object, buckets: int) -> tuple[int, int]:
    """Return (bucket, sign) of a value. 3 and 3.0 are one: one missing value turns a column's integers to floats."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    number = int.from_bytes(hashlib.blake2b(f"{column}\0{value}".encode(), digest_size=8).digest(), "big")
    return number // 2 % buckets, 1 - 2 * (number % 2)


def _numbers(values: pd.Series) -> np.ndarray:
    """Return float64 [N], 0 where a value is missing."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    wrong = (np.isnan(numbers) & values.notna().to_numpy()) | np.isinf(numbers)
    if wrong.any():
        raise SchemaError(
            f"column {values.name!r} of the items table has {values[wrong].tolist()[0]!r}, which is no finite number; "
            "repair it, or read the column as a category"
        )
    filled: np.ndarray = np.nan_to_num(numbers)
    return filled
