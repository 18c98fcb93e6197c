"""Sealed files: what was saved comes back, or an error says why not; what was there stays if nothing can be written."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bseq_plugin.errors import RunError
from bseq_plugin.model.tensor_file import load_sealed, save_sealed


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

    monkeypatch.setattr("bseq_plugin.model.tensor_file.os.replace", full)
    with pytest.raises(OSError, match="no space"):
        save_sealed(tmp_path / "file", {"a": torch.zeros(1)}, {})
    assert load_sealed(tmp_path / "file", "us")[1]["n"] == "3"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
