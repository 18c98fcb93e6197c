"""``bseq index report``: the table, the files and the pictures."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest


def test_report_writes_a_table_and_pictures(bseq, tiny_store, tmp_path):
    out = tmp_path / "report"
    code, table, err = bseq("index", "report", tiny_store, "--k", "5", "--indexes", "exact,flat,hnsw", "--out", out)
    assert code == 0, err
    assert "recall@5" in table
    assert "quickest for one query" in table
    document = json.loads((out / "index_report.json").read_text())
    assert document["k"] == 5
    assert {row["options"].get("factory") for row in document["rows"]} == {None, "Flat", "hnsw"}
    assert (out / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    words = {node.text for node in ElementTree.parse(out / "pareto.svg").iter() if node.text}
    assert ElementTree.parse(out / "pareto.svg").getroot().tag.endswith("svg")
    assert len(words) > 0


def test_json_and_a_test_log(bseq, tiny_store, tiny_frame, tmp_path):
    span = tiny_frame.timestamp.max() - tiny_frame.timestamp.min()
    other_items = (tiny_frame.item_id - 5 + 150) % 300 + 5  # half of the catalogue further: new to most users
    later = tiny_frame.assign(timestamp=tiny_frame.timestamp + span, item_id=other_items)
    later = later[later.timestamp > tiny_frame.timestamp.max()]
    later.to_parquet(tmp_path / "later.parquet")
    command = ["index", "report", tiny_store, "--test", tmp_path / "later.parquet", "--indexes", "exact", "--json"]
    code, out, err = bseq(*command)
    assert code == 0, err
    document = json.loads(out)
    assert document["n_task_users"] > 0
    assert document["rows"][0]["task"]["recall lost"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--indexes", "foo"], "use some of exact"), (["--indexes", ""], "use some of"), (["--recall", "0"], "--recall 0"),
     (["--k", "0"], "k = 0"), (["--test", "missing.parquet"], "missing.parquet")],
)  # fmt: skip
def test_wrong_use(bseq, tiny_store, arguments, message):
    code, _, err = bseq("index", "report", tiny_store, *arguments)
    assert code == 2
    assert message in err
