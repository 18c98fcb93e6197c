"""Every listing as a table, as JSON and nothing else, and as a Parquet file: the same rows."""

import json

import pandas as pd
import pytest

LISTINGS = [
    ("plugins",), ("recipes",), ("recipes", "--keys"), ("store", "list", "STORE"), ("store", "verify", "STORE"),
    ("store", "gc", "STORE", "--keep", "9"), ("heads",),
]  # fmt: skip


@pytest.mark.parametrize("command", LISTINGS, ids=" ".join)
def test_the_same_rows_in_each_form(bseq, tiny_store, tmp_path, command):
    words = [tiny_store if word == "STORE" else word for word in command]
    code, table, err = bseq(*words)
    assert code == 0, err
    code, text, err = bseq(*words, "--json", "--out", tmp_path / "rows.parquet")
    assert code == 0, err
    rows, found = json.loads(text), pd.read_parquet(tmp_path / "rows.parquet")
    assert len(rows) == len(found) > 0
    first = next(iter(rows[0]))
    assert found[first].tolist() == [row[first] for row in rows]
    assert all(str(row[first]).split("\n")[0] in table for row in rows)
    code, _, err = bseq(*words, "--out", tmp_path)
    assert (code, "is a folder" in err) == (2, True)


def test_a_damaged_version_is_a_row(bseq, tiny_store, tmp_path):
    import shutil

    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    [vectors] = (store / "versions").glob("*/items.safetensors")
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"x")
    code, text, _ = bseq("store", "verify", store, "--json")
    [row] = json.loads(text)
    assert (code, row["intact"], "items.safetensors" in row["error"]) == (1, False, True)


def test_the_weights_of_a_blend(bseq, tiny_run, tmp_path):
    code, text, err = bseq("fit-blend", tiny_run, "--out", tmp_path / "blend.json", "--json")
    assert code == 0, err
    assert json.loads(text)["interest"] > 0
