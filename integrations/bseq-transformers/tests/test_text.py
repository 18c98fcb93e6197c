"""The item encoder ``text``: against one text at a time, its cache, odd input, and what is refused."""

from __future__ import annotations

import json
import shutil
import socket
from typing import ClassVar

import bseq_transformers.text as text_module
import numpy as np
import pandas as pd
import pytest
import torch
from bseq_transformers.backbone import open_backbone
from bseq_transformers.cache import VectorCache, text_hash
from bseq_transformers.text import TextItemEncoder, TextOptions

import bseq_plugin as bseq
from bseq_plugin.testing.item_encoders import ItemEncoderTests

ITEMS = pd.DataFrame(
    {
        "item_id": [1, 2, 3, 4, 5, 6, 7],
        "name": ["lip balm", " ", "nail polish red", None, "bread", "", "fresh milk of the blue nail"],
        "brand": pd.Categorical([None, None, "red", None, "milk", "blue", None]),
    }
)


@pytest.fixture
def encoder(tiny_model):
    """A function: ``text`` on the tiny model with these options."""

    def build(**options):
        given = {"columns": ("name",), "model": str(tiny_model), "dtype": "float32", **options}
        return TextItemEncoder(TextOptions(**given))

    return build


class TestText(ItemEncoderTests):
    item_encoder = TextItemEncoder
    items = ITEMS
    empty = (1, 3)
    options: ClassVar = {"columns": ("name", "brand"), "dtype": "float32", "cache": False}
    atol = 1e-5

    @pytest.fixture(autouse=True)
    def _tiny(self, tiny_model, monkeypatch):
        monkeypatch.setitem(self.options, "model", str(tiny_model))


class TestCachedText(TestText):
    options: ClassVar = {"columns": ("name", "brand"), "dtype": "float32"}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_as_one_text_at_a_time(encoder, tiny_model, pooling, normalize):
    from transformers import AutoModel, AutoTokenizer

    texts = [f"{'red ' * (n % 7)}{'lip balm' * (n % 3)} {n}" for n in range(50)]
    found = encoder(pooling=pooling, normalize=normalize).encode(pd.DataFrame({"item_id": range(50), "name": texts}))
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModel.from_pretrained(tiny_model).eval()
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        wanted = states.mean(0) if pooling == "mean" else states[0]
        wanted = wanted / wanted.norm() if normalize else wanted
        np.testing.assert_allclose(vector, wanted.numpy(), atol=1e-5)


def test_half_precision_is_close(encoder):
    exact, halves = encoder(), encoder(dtype="bfloat16")
    assert exact.identity == halves.identity
    cosines = (exact.encode(ITEMS) * halves.encode(ITEMS)).sum(1)
    assert (cosines[[0, 2, 4, 6]] > 0.999).all()


def test_columns_are_joined_without_the_empty_ones(encoder):
    joined = encoder(columns=("name", "brand")).texts(ITEMS)
    assert joined == ["lip balm", "", "nail polish red, red", "", "bread, milk", "blue", "fresh milk of the blue nail"]


def test_odd_texts_have_vectors_too(encoder):
    odd = ["😀💄", "אדום שפתון", "أحمر شفاه", "e\u0301", "\ud800 lip", "a\0b", "🏳️‍🌈", "lip\u202ebalm", "x" * 10_000]
    found = encoder().encode(pd.DataFrame({"item_id": range(len(odd)), "name": pd.Series(odd, dtype=object)}))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_very_long_text_is_read_from_its_beginning(encoder):
    long = " ".join(["lip"] * 5 + ["red"] * 10_000)
    other = " ".join(["lip"] * 5 + ["red"] * 100)
    with pytest.warns(UserWarning, match="2 texts have more than max_tokens = 38 words; their beginning is read"):
        found = encoder(max_tokens=500).encode(pd.DataFrame({"item_id": [1, 2], "name": [long, other]}))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_what_is_in_the_cache_is_not_encoded_again(encoder, own_cache, monkeypatch):
    first = encoder().encode(ITEMS)
    more = pd.DataFrame({"item_id": [9], "name": ["blue bread"]})
    table = pd.concat([ITEMS, more])
    again = encoder()
    encoded = []
    real = TextItemEncoder._encoded
    monkeypatch.setattr(
        TextItemEncoder, "_encoded", lambda self, texts, advance: encoded.extend(texts) or real(self, texts, advance)
    )
    assert np.array_equal(again.encode(table)[: len(ITEMS)], first)
    assert encoded == ["blue bread"]
    encoder(columns=("name", "brand")).encode(ITEMS.iloc[:1])  # the same text, of other columns
    assert encoded == ["blue bread"]
    encoder(pooling="cls").encode(ITEMS.iloc[:1])
    assert encoded == ["blue bread", "lip balm"]


def test_a_killed_process_loses_only_what_it_was_at(encoder, monkeypatch):
    items = pd.DataFrame({"item_id": range(30), "name": [f"lip {'red ' * n}" for n in range(30)]})
    monkeypatch.setattr(text_module, "PART", 8)
    real, calls = TextItemEncoder._encoded, []

    def killed(self, texts, advance):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(texts))
        return real(self, texts, advance)

    monkeypatch.setattr(TextItemEncoder, "_encoded", killed)
    with pytest.raises(KeyboardInterrupt):
        encoder().encode(items)
    monkeypatch.setattr(
        TextItemEncoder, "_encoded", lambda self, texts, advance: calls.append(len(texts)) or real(self, texts, advance)
    )
    found = encoder().encode(items)
    assert calls == [8, 8, 8, 6]
    monkeypatch.setattr(TextItemEncoder, "_encoded", real)
    np.testing.assert_allclose(found, encoder(cache=False).encode(items), atol=1e-5)


def test_a_damaged_part_is_encoded_again(encoder, own_cache):
    wanted = encoder().encode(ITEMS)
    [part] = own_cache.rglob("*.part")
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(bytes(content))
    np.testing.assert_allclose(encoder().encode(ITEMS), wanted, atol=1e-6)
    [part] = own_cache.rglob("*.part")
    assert np.array_equal(encoder().encode(ITEMS), wanted)
    part.write_bytes(part.read_bytes()[:-1])
    np.testing.assert_allclose(encoder().encode(ITEMS), wanted, atol=1e-6)


def test_a_cache_gives_back_what_was_put_in(tmp_path):
    cache, random = VectorCache("key", 5, tmp_path), np.random.default_rng(0)
    hashes = [text_hash(str(number)) for number in range(20)]
    vectors = random.normal(size=(20, 5)).astype(np.float32)
    for part in np.array_split(np.arange(15), 3):
        cache.add([hashes[place] for place in part], vectors[part])
    order = random.permutation(20)
    found, known = cache.read([hashes[place] for place in order])
    assert known.tolist() == (order < 15).tolist()
    assert np.array_equal(found[known], vectors[order[known]])
    assert not found[~known].any()
    assert not VectorCache("other", 5, tmp_path).read(hashes)[1].any()


def test_changed_weights_are_another_encoder_and_find_nothing_in_the_cache(encoder, save_tiny, tmp_path):
    folder = save_tiny(tmp_path / "model", seed=1)
    before = encoder(model=str(folder))
    vectors, identity = before.encode(ITEMS), before.identity
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert encoder(model=str(moved)).identity == identity
    save_tiny(folder, seed=2)
    after = encoder(model=str(folder))
    assert after.identity != identity
    assert np.abs(after.encode(ITEMS) - vectors).max() > 0.1


def edited(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


BREAK = {
    "no config": (lambda f: (f / "config.json").unlink(), "is no model directory: it has no config.json"),
    "half a config": (lambda f: (f / "config.json").write_text("{"), "is no JSON"),
    "pickled": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        r"has no \*.safetensors weights \(only pytorch_model.bin, which can run code",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"has no \*.safetensors weights \(none\)"),
    "no tokenizer": (
        lambda f: [p.unlink() for p in f.iterdir() if p.name not in ("config.json", "model.safetensors")],
        "has no tokenizer",
    ),
    "own code": (
        lambda f: edited(f, model_type="mine", auto_map={"AutoModel": "mine.Mine"}),
        "is a 'mine', which this version of transformers does not know; it would need code of its own, which is never",
    ),
    "damaged weights": (
        lambda f: (f / "model.safetensors").write_bytes(b"\0" * 99),
        "the weights of .* can't be loaded: ",
    ),
}


@pytest.mark.parametrize("what", BREAK)
def test_what_is_no_model_is_refused(encoder, tiny_model, tmp_path, what):
    spoil, message = BREAK[what]
    spoil(shutil.copytree(tiny_model, tmp_path / "model"))
    with pytest.raises(bseq.UsageError, match=message):
        encoder(model=str(tmp_path / "model")).encode(ITEMS)


def test_code_beside_a_known_model_is_not_run(encoder, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    edited(folder, auto_map={"AutoModel": "mine.Mine", "AutoConfig": "mine.Config"})
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    np.testing.assert_allclose(
        encoder(model=str(folder)).encode(ITEMS), encoder(model=str(tiny_model)).encode(ITEMS), atol=1e-6
    )
    assert not (tmp_path / "ran").exists()


def test_nothing_is_downloaded_unless_asked(encoder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(bseq.UsageError, match="is no directory; .* Nothing is downloaded unless hub = true"):
        encoder(model="bert-base-uncased").encode(ITEMS)
    encoder().encode(ITEMS)


def test_asked_for_the_hub_is_told_in_one_line(encoder, monkeypatch):
    asked = []

    def offline(name, allow_patterns):
        asked.append((name, allow_patterns))
        raise OSError("no network\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(bseq.UsageError, match="'some/model' can't be had from the hub: OSError: no network$"):
        encoder(model="some/model", hub=True).encode(ITEMS)
    [(name, patterns)] = asked
    assert name == "some/model"
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in patterns)


def test_the_default_weights_know_what_is_alike():
    """Real pretrained weights, offline."""
    backbone = open_backbone("default")
    assert backbone.width == 384
    texts = ["red lipstick", "crimson lip color", "whole wheat bread", "white loaf", "dog food", "puppy kibble"]
    found = TextItemEncoder(TextOptions(columns=("name",))).encode(pd.DataFrame({"item_id": range(6), "name": texts}))
    cosines = found @ found.T - 2 * np.eye(6)
    assert cosines.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]
