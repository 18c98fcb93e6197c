"""Sealed files: what was saved comes back, or an error says why not; what was there stays if nothing can be written."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bseq_plugin import BseqError, RunError, UsageError, load_sealed, save_sealed


def saved(path):
    tensors = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.tensor([1, 2])}  # one is not contiguous
    save_sealed(path, tensors, {"what": "täxt", "n": "3"})
    return tensors


def test_what_was_saved_comes_back(tmp_path):
    tensors = saved(tmp_path / "new" / "file.safetensors")
    found, told = load_sealed(tmp_path / "new" / "file.safetensors", "us")
    assert told == {"what": "täxt", "n": "3"}
    assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in tensors.items()}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["file.safetensors"]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_changed_byte_goes_unnoticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("sealed") / "file"
    tensors = saved(path)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try:
        found, told = load_sealed(path, "us")
    except RunError:
        return
    # blanks of the header can change without a change of meaning
    assert told == {"what": "täxt", "n": "3"}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_what_is_no_such_file(tmp_path):
    with pytest.raises(RunError, match=r"there is no file '.*nothing'; give one that us\.save wrote"):
        load_sealed(tmp_path / "nothing", "us.save")
    (tmp_path / "text").write_text("hello")
    save_file({"a": torch.zeros(1)}, tmp_path / "plain")
    for name in ("text", "plain"):
        with pytest.raises(RunError, match=r"is not a file that us\.save wrote"):
            load_sealed(tmp_path / name, "us.save")


def test_a_file_that_can_not_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    saved(tmp_path / "file")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("bseq_plugin.files.os.replace", full)
    with pytest.raises(BseqError, match=r"can't write '.*file': no space"):
        save_sealed(tmp_path / "file", {"a": torch.zeros(1)}, {})
    assert load_sealed(tmp_path / "file", "us")[1]["n"] == "3"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_tensors_may_share_memory(tmp_path):
    """As tied weights do; safetensors itself refuses them."""
    whole = torch.arange(6.0)
    tensors = {"whole": whole, "again": whole, "part": whole[2:4], "wide": whole[:1].expand(3)}
    save_sealed(tmp_path / "file", tensors, {})
    found, _ = load_sealed(tmp_path / "file", "us")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_place_where_no_file_can_be(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("hello")
    for path, why in (
        (tmp_path / "folder", "it is a folder; name a file in it"),
        (tmp_path / "text" / "file", "its folder can't be made"),
        (tmp_path / "text" / "deep" / "file", "its folder can't be made"),
    ):
        with pytest.raises(UsageError, match=f"can't write '{path}': {why}"):
            save_sealed(path, {"a": torch.zeros(1)}, {})
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["folder", "text"]
    assert (tmp_path / "text").read_text() == "hello"


def test_two_writers_do_not_share_the_file_aside(tmp_path, monkeypatch):
    """While one is at it, another process writes the same file from beginning to end."""
    replace = os.replace

    def late(aside, path):
        monkeypatch.setattr("bseq_plugin.files.os.replace", replace)
        monkeypatch.setattr("bseq_plugin.files.os.getpid", lambda: 1)
        save_sealed(path, {"a": torch.ones(1)}, {"of": "another"})
        replace(aside, path)

    monkeypatch.setattr("bseq_plugin.files.os.replace", late)
    save_sealed(tmp_path / "file", {"a": torch.zeros(1)}, {"of": "mine"})
    found, told = load_sealed(tmp_path / "file", "us")
    assert (found["a"].item(), told) == (0, {"of": "mine"})
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
