"""``bseq store``: each command against what the store itself says."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from bseq_plugin import Retriever, publish
from bseq_plugin.store.store import Store


@pytest.fixture
def three(tiny_run, tmp_path):
    """A store with three versions, and their names."""
    names = [publish(tiny_run, tmp_path / "store") for _ in range(3)]
    return tmp_path / "store", names


def test_list_says_what_the_manifests_say(bseq, three):
    path, names = three
    code, out, _ = bseq("store", "list", path, "--json")
    rows = json.loads(out)
    assert (code, [row["version"] for row in rows]) == (0, names)
    assert [row["current"] for row in rows] == [False, False, True]
    manifest = Store(path).current().manifest
    assert rows[-1]["n_items"] == manifest["n_items"]
    assert rows[-1]["bytes"] == sum(entry["bytes"] for entry in manifest["files"].values())
    assert all(name in bseq("store", "list", path)[1] for name in names)


def test_verify_names_what_is_damaged(bseq, three):
    path, names = three
    assert bseq("store", "verify", path)[0] == 0
    (path / "versions" / names[1] / "blend.json").write_text("{}")
    code, out, _ = bseq("store", "verify", path)
    assert (code, out.count("intact"), f"{names[1]}/blend.json" in out) == (1, 2, True)
    assert bseq("store", "verify", path, names[0])[0] == 0
    assert bseq("store", "verify", path, names[1])[0] == 1


def test_rollback_and_gc(bseq, three):
    path, names = three
    assert bseq("store", "rollback", path)[0] == 0
    assert Store(path).current_name() == names[1]
    assert bseq("store", "rollback", path, names[0])[0] == 0
    assert Store(path).current_name() == names[0]
    code, _, err = bseq("store", "rollback", path)
    assert (code, "no intact version" in err) == (1, True)
    code, out, _ = bseq("store", "gc", path, "--keep", 1, "--grace", 0)
    assert (code, f"removed {names[1]}" in out) == (0, True)
    assert Store(path).versions() == [names[0], names[2]]
    assert bseq("store", "gc", path, "--keep", 0)[0] == 2


@pytest.mark.parametrize("command", ["verify", "rollback", "gc"])
def test_a_folder_without_a_store_is_a_failure(bseq, tmp_path, command):
    code, _, err = bseq("store", command, tmp_path / "nothing")
    assert (code, "nothing is published" in err) == (1, True)


def test_delta_and_merge(bseq, tiny_store, tmp_path):
    shutil.copytree(tiny_store, tmp_path / "store")
    store = tmp_path / "store"
    opened = Retriever.open(store)
    dim, gone = opened.model.recipe.vectors.dim, opened.retrieve(opened.histories.user_ids[:1], k=1).item_id.tolist()
    pd.DataFrame({"item_id": [99_999], "vector": [[100.0] * dim]}).to_parquet(tmp_path / "new.parquet")
    pd.DataFrame({"item_id": gone}).to_csv(tmp_path / "gone.csv", index=False)
    code, _, err = bseq(
        "store", "delta", store, "--items", tmp_path / "new.parquet", "--removed", tmp_path / "gone.csv"
    )
    assert code == 0, err
    found = Retriever.open(store).retrieve(opened.histories.user_ids, k=50)
    assert 99_999 in set(found.item_id)
    assert not set(gone) & set(found.item_id)
    assert bseq("store", "merge", store)[0] == 0
    merged = Retriever.open(store)
    assert merged.model.vocabulary.n_items == opened.model.vocabulary.n_items
    again = merged.retrieve(opened.histories.user_ids, k=50)
    assert set(zip(again.user_id, again.item_id, strict=True)) == set(zip(found.user_id, found.item_id, strict=True))
    before = Store(store).versions()
    pd.DataFrame({"item_id": [1, 2], "vector": [[1.0], [1.0, 2.0]]}).to_parquet(tmp_path / "ragged.parquet")
    pd.DataFrame({"item_id": [1], "vector": ["much"]}).to_parquet(tmp_path / "text.parquet")
    for arguments, message in [
        ([], "a delta of nothing"),
        (["--items", tmp_path / "gone.csv"], "needs the columns item_id, vector"),
        (["--items", tmp_path / "ragged.parquet"], "vectors of lengths [1, 2]"),
        (["--items", tmp_path / "text.parquet"], "column 'vector' holds 'much'"),
        (["--removed", tmp_path / "missing.csv"], "there is no file"),
    ]:
        code, _, err = bseq("store", "delta", store, *arguments)
        assert code == 2
        assert message in err
    assert Store(store).versions() == before
