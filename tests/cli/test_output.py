"""What is printed of a user's data is what it is: no markup, nothing cut, and the same in a pipe."""

import ast
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Retriever, UsageError, write_candidates
from bseq_plugin.console import Plain, Table, visible

ROOT = Path(__file__).parents[2]
ODD = [
    "[/x]",
    "[red]A[/red]",
    ":smile:",
    "6f9619ff-8b86-d011-b42d-00c04fc90001",
    "a\nb",
    "\x1b[31mred",
    "\u202eabc",
    "[v2]",
]


def test_one_module_draws():
    """Everything else goes through it, so that nothing of a user's data can be markup."""
    files = [*(ROOT / "bseq_plugin").rglob("*.py"), *(ROOT / "integrations").glob("*/bseq_*/**/*.py")]
    assert len(files) > 200
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {str(file.relative_to(ROOT)) for name in names if name.partition(".")[0] == "rich"}
    assert found == {"bseq_plugin/console.py"}


def printed(width, draw):
    console = Plain()
    console.file, console._width = io.StringIO(), width
    draw(console)
    return console.file.getvalue()


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_text_and_cells_are_shown_as_they_are(texts):
    lines = printed(80, lambda console: [console.print(text) for text in texts])
    assert lines == "".join(visible(text) + "\n" for text in texts)
    table = Table("id", title=texts[0])
    for text in texts:
        table.row(text.replace("\n", " "))
    shown = printed(80, lambda console: console.print(table))
    for text in texts:
        assert visible(text.replace("\n", " ")) in shown


def test_what_a_terminal_would_obey_is_escaped():
    assert visible("\x1b[31m\u202e\ta\nb é 日本") == "\\x1b[31m\\u202e\\ta\nb é 日本"


@pytest.fixture
def odd_store(bseq, tmp_path):
    """A store whose users, items and folder have names that look like markup."""
    folder = tmp_path
    times = [1_600_000_000 + n for n in range(len(ODD))]
    rows = [
        {"user_id": user, "item_id": item, "timestamp": t} for user in ODD for item, t in zip(ODD, times, strict=True)
    ]
    pd.DataFrame(rows).to_parquet(folder / "log.parquet")
    train = ["train", folder / "log.parquet", "--out", folder / "run", "--timestamp-unit", "s"]
    quick = ["encoder=mean", "vectors.dim=8", "training.epochs=1", "split.mask_seen=false"]
    told = bseq(*train, *[word for setting in quick for word in ("--set", setting)])
    assert told[0] == 0, told
    told = bseq("publish", folder / "run", "--store", folder / "s[" / "x]")
    assert told[0] == 0, told
    return folder / "s[" / "x]"


def test_ids_and_names_of_a_store(odd_store, bseq):
    code, out, err = bseq("retrieve", odd_store, "--user", ODD[3], "--k", len(ODD), "--exclude", "none")
    assert code == 0, err
    for text in (*ODD, str(odd_store)):
        assert visible(text).replace("\n", " ") in out or text.split("\n")[0] in out
    code, out, err = bseq("retrieve", odd_store, "--user", "[/x]", "--k", 3, "--json", "--exclude", "none")
    assert {hit["user_id"] for hit in json.loads(out)["candidates"]} == {"[/x]"}
    code, out, err = bseq("store", "list", odd_store)
    assert str(odd_store) in out
    assert "v00000001-" in out
    code, out, err = bseq("retrieve", odd_store, "--user", "[nobody]")
    assert (code, "[nobody]" in err) == (2, True)


def test_candidates_of_a_file_of_users(tiny_store, bseq, tmp_path):
    """Row for row what one asks for one by one; wrong users end before anything is written."""
    retriever = Retriever.open(tiny_store)
    users = retriever.histories.user_ids[::-1]
    pd.DataFrame({"user_id": users, "extra": "x"}).to_csv(tmp_path / "users.csv", index=False)
    wanted = pd.concat([retriever.retrieve([user], 7) for user in users], ignore_index=True)
    code, out, err = bseq(
        "retrieve", tiny_store, "--users", tmp_path / "users.csv", "--out", tmp_path / "c.parquet", "--k", 7
    )
    assert (code, out) == (0, ""), err
    found = pd.read_parquet(tmp_path / "c.parquet")
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False, check_exact=False, atol=1e-6)
    for wrong, told in (([1.5], "floats"), ([10**6], "not in this store"), ([int(users[0])] * 2, "is there twice")):
        pd.DataFrame({"user_id": wrong}).to_csv(tmp_path / "wrong.csv", index=False)
        code, _, err = bseq("retrieve", tiny_store, "--users", tmp_path / "wrong.csv", "--out", tmp_path / "d.parquet")
        assert (code, told in err) == (2, True), err
    assert not (tmp_path / "d.parquet").exists()
    code, _, err = bseq("retrieve", tiny_store, "--users", tmp_path / "users.csv")
    assert (code, "--out" in err) == (2, True)
    with pytest.raises(UsageError, match="users is empty"):
        write_candidates(retriever, [], tmp_path / "d.parquet")


def test_a_batch_at_a_time(tiny_store, tmp_path, monkeypatch):
    """However many users there are, so many are asked for at once; the file is that of one batch."""
    retriever, sizes = Retriever.open(tiny_store), []
    users = retriever.histories.user_ids
    write_candidates(retriever, users, tmp_path / "one.parquet", 5)
    monkeypatch.setattr("bseq_plugin.serving.bulk.BATCH", 7)
    write_candidates(retriever, users, tmp_path / "many.parquet", 5, report=sizes.append)
    assert sizes == [7] * (len(users) // 7) + [len(users) % 7] * (len(users) % 7 > 0)
    one, many = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("one", "many"))
    pd.testing.assert_frame_equal(one, many, check_exact=False, atol=1e-6)
