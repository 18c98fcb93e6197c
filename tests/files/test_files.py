"""Write aside, flush, rename, flush the folder: in this order, whole or not at all, and nowhere else in the package."""

import ast
import errno
import json
from pathlib import Path

import pytest

import bseq_plugin
from bseq_plugin import BseqError, UsageError
from bseq_plugin.files import (
    SCRATCH,
    Disk,
    aside_of,
    output_file,
    put_in_place,
    whole_file,
    write_bytes,
    write_json,
    write_text,
)

SOURCES = Path(bseq_plugin.__file__).parent
# what else renames and flushes, and why it is not what files.py is for
OTHERS = {
    "store/disk.py": "moves what is to be removed out of sight",
    "store/lock.py": "writes into the file that it has locked",
}


class Recorder(Disk):
    """Writes down each operation, relative to a folder; the n-th can be made to fail."""

    def __init__(self, folder, fail_at=None):
        self.folder, self.fail_at, self.done = folder, fail_at, []

    def _step(self, name, *paths):
        self.done.append((name, *(str(path.relative_to(self.folder)) for path in paths)))
        if len(self.done) == self.fail_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write(self, path, data):
        self._step("write", path)
        super().write(path, data)

    def fsync(self, path):
        self._step("fsync", path)
        super().fsync(path)

    def replace(self, source, target):
        self._step("replace", source, target)
        super().replace(source, target)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "file").write_text("old")
    return tmp_path


def test_the_order_of_a_file(folder):
    disk, aside = Recorder(folder), aside_of(folder / "file").name
    write_bytes(folder / "file", b"new", disk)
    assert disk.done == [("write", aside), ("fsync", aside), ("replace", aside, "file"), ("fsync", ".")]
    assert (folder / "file").read_text() == "new"


def test_the_order_of_a_folder_with_all_that_is_in_it(folder):
    aside = folder / "aside"
    (aside / "deep").mkdir(parents=True)
    (aside / "a").write_text("1")
    (aside / "deep" / "b").write_text("2")
    (folder / "target").mkdir()
    (folder / "target" / "before").write_text("0")
    disk = Recorder(folder)
    put_in_place(aside, folder / "target", disk)
    *flushed, renamed, last = disk.done
    assert set(flushed) == {("fsync", name) for name in ("aside", "aside/a", "aside/deep", "aside/deep/b")}
    assert (renamed, last) == (("replace", "aside", "target"), ("fsync", "."))
    assert {path.name for path in (folder / "target").rglob("*")} == {"a", "deep", "b"}


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4])
def test_a_failure_at_any_step_leaves_old_or_new_and_nothing_beside_it(folder, fail_at):
    with pytest.raises(OSError, match="No space"):
        write_bytes(folder / "file", b"new", Recorder(folder, fail_at))
    assert (folder / "file").read_text() == ("new" if fail_at == 4 else "old")
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_until_the_block_ends_well_a_file_is_what_it_was(folder):
    def half():
        with whole_file(folder / "file") as file:
            file.write(b"half of it")
            assert (folder / "file").read_text() == "old"
            assert {path.name for path in folder.iterdir()} == {"file", aside_of(folder / "file").name}
            raise KeyError("the other half")

    with pytest.raises(KeyError, match="the other half"):
        half()
    assert (folder / "file").read_text() == "old"
    assert [path.name for path in folder.iterdir()] == ["file"]
    with whole_file(folder / "file") as file:
        file.write(b"all of it")
    assert (folder / "file").read_text() == "all of it"


def test_what_is_written_aside_is_hidden_and_of_one_process(tmp_path, monkeypatch):
    mine = aside_of(tmp_path / "file")
    assert mine.parent == tmp_path
    assert mine.name.startswith(SCRATCH)
    monkeypatch.setattr("bseq_plugin.files.os.getpid", lambda: 1)
    assert aside_of(tmp_path / "file") != mine


def test_text_and_json(tmp_path):
    write_text(tmp_path / "text", "ÿ\n")
    assert (tmp_path / "text").read_bytes() == b"\xc3\xbf\n"
    write_json(tmp_path / "new" / "folder" / "a.json", {"b": [1, None]})
    assert json.loads((tmp_path / "new" / "folder" / "a.json").read_text()) == {"b": [1, None]}


def test_an_output_that_a_user_has_named(tmp_path):
    told = r"there is no folder '.*nowhere'; create it first"
    with pytest.raises(UsageError, match=told), output_file(tmp_path / "nowhere" / "file"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(BseqError, match=r"can't write '.*folder'"), output_file(tmp_path / "folder") as file:
        file.write(b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def is_rename(node):
    """A call of os.replace, os.rename or os.fsync, or of Path.rename or Path.replace, which take one path."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    name = ast.unparse(node.func)
    if name in ("os.replace", "os.rename", "os.fsync", "os.fdatasync"):
        return True
    one_path = len(node.args) == 1 and not node.keywords and not isinstance(node.args[0], ast.Dict)
    return node.func.attr in ("rename", "replace") and one_path


def renames(tree):
    """Lines that rename or flush by the operating system's own functions."""
    return sorted(node.lineno for node in ast.walk(tree) if is_rename(node))


def test_nothing_else_writes_aside_and_renames():
    others = {}
    for path in SOURCES.rglob("*.py"):
        lines = renames(ast.parse(path.read_text(encoding="utf-8")))
        if lines and path != SOURCES / "files.py":
            others[str(path.relative_to(SOURCES))] = lines
    assert set(others) == set(OTHERS), others


def test_the_search_for_others_sees_them():
    code = "os.replace(a, b)\naside.rename(path)\nos.fsync(d)\ntext.replace('a', 'b')\nrecipe.replace(dim=3)\n"
    assert renames(ast.parse(code)) == [1, 2, 3]
