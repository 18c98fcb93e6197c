"""Ids of anything: what is the same ids in another container is read as such, and what is no id is refused."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import SchemaError, UsageError
from bseq_plugin.events.ids import as_ids, ids_like, read_id


class ArrowColumn:
    """What a column of polars is to us."""

    def __init__(self, ids):
        self.ids = pa.chunked_array([ids])

    def __arrow_c_stream__(self, requested_schema=None):
        return self.ids.__arrow_c_stream__(requested_schema)


INTEGER_KINDS = [
    ArrowColumn,
    list, tuple, iter, np.array, pd.Series, pd.Index, pa.array, torch.tensor,
    lambda x: np.array(x, np.uint64), lambda x: np.array(x, object), lambda x: pd.Series(x, dtype="Int64"),
    lambda x: pd.Series(x, dtype="uint64[pyarrow]"), lambda x: pd.Series(x).astype("category"),
    lambda x: pa.chunked_array([x, []], pa.int64()), lambda x: pa.array(x).dictionary_encode(),
    lambda x: [np.int32(v % 2**31) if v < 2**31 else v for v in x], lambda x: dict.fromkeys(x).keys(),
]  # fmt: skip
TEXT_KINDS = [
    ArrowColumn,
    list, tuple, iter, np.array, pd.Series, pd.Index, pa.array, lambda x: np.array(x, object),
    lambda x: pd.Series(x, dtype="string"), lambda x: pd.Series(x, dtype="string[pyarrow]"),
    lambda x: pd.Series(x).unique(), lambda x: pd.Series(x, dtype="category"), lambda x: pa.array(x, pa.large_string()),
    lambda x: pa.array(x, pa.string_view()), lambda x: dict.fromkeys(x).keys(),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(INTEGER_KINDS)))
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8, unique=True))
@settings(max_examples=25, deadline=None)
def test_integers_of_every_container(place, ids):
    found = as_ids(INTEGER_KINDS[place](ids), "ids")
    assert (found.dtype, found.tolist()) == (np.int64, ids)


@pytest.mark.parametrize("place", range(len(TEXT_KINDS)))
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1, unique=True))
@settings(max_examples=25, deadline=None)
def test_text_of_every_container(place, ids):
    found = as_ids(TEXT_KINDS[place](ids), "ids")
    assert (found.dtype, found.tolist()) == (np.dtype(object), ids)


REFUSED = [
    ([7.0], "holds float values"), (np.array([7.0]), "holds float64"), (torch.tensor([7.0]), "holds float32"),
    (pd.Series([7.0], dtype="Float64"), "holds"), ([True], "holds bool"), (np.array([True]), "holds bool"),
    ([1, None], "null in row 1"), (["a", np.nan], "null in row 1"),
    (pd.Series([1, pd.NA], dtype="Int64"), "null in row 1"),
    (pa.array([None, 1]), "null in row 0"), ([1, "a"], "int and str"), ([1, -1], "id -1 in row 1"),
    (np.array([2**63], np.uint64), "has id 9223372036854775808"), ([2**70], "has id 1180591620717411303424"),
    (["a", "b\0"], "NUL character in row 1"), (["\ud800"], "not valid Unicode"), ([b"a"], "bytes"), ([[1]], "list"),
    (pd.to_datetime(["2020-01-01"]), "datetime64"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[f"{n}" for n in range(len(REFUSED))])
def test_what_is_no_id_is_refused(values, message):
    with pytest.raises(SchemaError, match=f"^mine .*{message}"):
        as_ids(values, "mine")


@pytest.mark.parametrize("values", ["ab", b"ab", 5, None, {"a": 1}, np.array([[1]]), np.int64(3), object()])
def test_what_is_no_list_is_refused(values):
    with pytest.raises(UsageError, match="mine .*give (a|one) list of ids"):
        as_ids(values, "mine")


def test_ids_are_of_the_kind_of_the_catalogue():
    integers, text = np.array([5, 6]), np.array(["a"], object)
    assert ids_like([], text, "x").dtype == object
    assert ids_like([], integers, "x").dtype == np.int64
    assert ids_like([7], integers, "x").tolist() == [7]
    for given_ids, known in ((["5"], integers), ([5], text)):
        with pytest.raises(SchemaError, match="x holds .*; the ids here are .*, for example"):
            ids_like(given_ids, known, "x")


@pytest.mark.parametrize("text", ["007", "+7", "1_0", " 7", "7.0", "-1", "1e3", "٣", str(2**63), ""])
def test_an_id_of_the_command_line_is_written_plainly(text):
    with pytest.raises(UsageError, match="--user .* whole numbers"):
        read_id(text, np.array([7]), "--user")
    assert read_id(text, np.array(["7"], object), "--user") == text
    assert read_id("7", np.array([7]), "--user") == 7
