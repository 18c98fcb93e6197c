"""Ids of anything: what every door does with what it is given as ids of users, items or requests.

An id is an integer of 0 to 2^63 - 1, or text. It is never a float (two large ids may be one float), never negative (-1
stands for "unknown" on disk), and text has no NUL character (which stands for "unknown" too).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bseq_plugin.errors import SchemaError, UsageError

LARGEST = 2**63 - 1
INTEGER = re.compile(r"0|[1-9][0-9]{0,18}")


def as_ids(values: object, what: str) -> np.ndarray:
    """Return ids, int64 or str objects [N], in the order given.

    Args:
        values: a list, generator or set, an array, a Series or Index of any dtype, a tensor, or what speaks Arrow
            (``__arrow_c_array__``, ``__arrow_c_stream__``: Arrow and polars columns).
        what: how the caller calls them, in errors.

    Raises:
        UsageError: it is no list.
        SchemaError: it holds floats, truth values, nulls, negative numbers or several kinds.
    """
    array = _array(values, what)
    if array.dtype.kind in "iu":
        return _whole(array, what)
    if array.dtype.kind in "OU":
        return _objects(array.astype(object), what)
    raise SchemaError(f"{what} holds {array.dtype} values; ids are integers or text: convert them")


def ids_like(values: object, known: np.ndarray, what: str) -> np.ndarray:
    """Return ids of the kind that ``known`` ones have (int64, or str objects). Raises as ``as_ids``."""
    ids = as_ids(values, what)
    require_kind(pd.Index(ids), known, what)
    return ids if len(ids) else ids.astype(known.dtype)


def require_kind(ids: pd.Index, known: np.ndarray, what: str) -> None:
    """Raise SchemaError if ids and known ones can never be equal: integers and text, or floats and anything."""
    if not len(ids) or not len(known):
        return
    if ids.dtype.kind in "fbcmM" or is_text(ids) != is_text(known):
        kind = "integers" if not is_text(ids) else "text" if ids.dtype.kind in "OU" else str(ids.dtype)
        raise SchemaError(
            f"{what} holds {kind}, such as {ids[:1].tolist()[0]!r}; the ids here are "
            f"{'text' if is_text(known) else 'integers'}, for example {known[:1].tolist()[0]!r}"
        )


def is_text(ids: np.ndarray | pd.Series | pd.Index) -> bool:
    """Whether ids that ``as_ids`` gave are text."""
    return not pd.api.types.is_integer_dtype(ids.dtype)


def read_id(text: str, known: np.ndarray, option: str) -> int | str:
    """Return an id of the command line as ``known`` ones are written.

    Raises UsageError if these are integers and it is none: ``007``, ``+7`` and ``1_0`` are not 7 and 10.
    """
    if is_text(known):
        return text
    if not INTEGER.fullmatch(text) or int(text) > LARGEST:
        raise UsageError(f"{option} {text!r}: ids here are whole numbers, for example {known[:1].tolist()}")
    return int(text)


def _array(values: object, what: str) -> np.ndarray:
    """Values as an array: of integers where all are, else of objects."""
    if isinstance(values, np.ndarray):
        array = values
    elif isinstance(values, pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        array = _of_pandas(pd.Series(values), what)
    elif hasattr(values, "__arrow_c_array__") or hasattr(values, "__arrow_c_stream__"):
        array = _of_arrow(values, what)
    elif hasattr(values, "detach"):
        array = values.detach().cpu().numpy()  # a tensor
    elif isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise UsageError(f"{what} = {values!r}; give a list of ids: [{values!r}]")
    else:
        array = _of_list(list(values))
    if array.ndim != 1:
        raise UsageError(f"{what} has shape {array.shape}; give one list of ids")
    return array


def _of_list(values: list[Any]) -> np.ndarray:
    """Whole numbers become int64 if all are; everything else stays as it is, for ``_objects`` to look at."""
    if values and all(type(value) is int for value in values) and min(values) >= -(2**63) and max(values) <= LARGEST:
        return np.array(values, np.int64)
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _of_pandas(column: pd.Series, what: str) -> np.ndarray:
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if column.isna().any():
        raise SchemaError(_null(int(column.isna().to_numpy().argmax()), what))
    numpy_integers = pd.api.types.is_integer_dtype(column.dtype) and not isinstance(column.dtype, np.dtype)
    return column.to_numpy("uint64" if column.dtype.kind == "u" else "int64") if numpy_integers else column.to_numpy()


def _of_arrow(values: Any, what: str) -> np.ndarray:
    try:
        column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.chunked_array(values)
    except (pa.ArrowException, TypeError, ValueError):
        raise UsageError(f"{what} is {type(values).__name__}; give one column of ids") from None
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        raise SchemaError(_null(pc.index(pc.is_null(column), True).as_py(), what))
    # Arrow's own conversion of one array can't copy unless it is told to
    return np.asarray(pa.chunked_array([column]).to_numpy() if isinstance(column, pa.Array) else column.to_numpy())


def _whole(array: np.ndarray, what: str) -> np.ndarray:
    if array.size and (int(array.min()) < 0 or int(array.max()) > LARGEST):
        row = int(np.flatnonzero((array < 0) | (array > LARGEST))[0])
        raise SchemaError(f"{what} has id {array[row]} in row {row}; ids are 0..2^63-1: re-number it or use strings")
    return array.astype(np.int64, copy=False)


def _objects(array: np.ndarray, what: str) -> np.ndarray:
    """Text, or Python's and numpy's integers; nothing else, and not both."""
    kinds = {type(value) for value in array}
    if all(issubclass(kind, str) for kind in kinds):
        return _text(array, what)
    for row, value in enumerate(array):
        if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value):
            raise SchemaError(_null(row, what))
    if all(issubclass(kind, int | np.integer) and not issubclass(kind, bool) for kind in kinds):
        for row, value in enumerate(array):
            if not 0 <= value <= LARGEST:
                raise SchemaError(f"{what} has id {value} in row {row}; ids are 0..2^63-1: re-number it or use strings")
        return array.astype(np.int64)
    names = sorted(kind.__name__ for kind in kinds)
    raise SchemaError(f"{what} holds {' and '.join(names)} values; ids are all integers or all text: convert them")


def _text(array: np.ndarray, what: str) -> np.ndarray:
    try:
        column = pa.array(array, pa.large_string())
    except (pa.ArrowException, UnicodeError, TypeError) as error:
        raise SchemaError(f"{what} has an id that is not valid Unicode: {error}; repair it first") from None
    bad = pc.match_substring(column, "\0")
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        raise SchemaError(f"{what} has an id with a NUL character in row {row}; repair it first")
    return array


def _null(row: int, what: str) -> str:
    return f"{what} has a null in row {row} (counted from 0); leave it out"
