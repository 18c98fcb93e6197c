"""A tiny BERT with random weights, saved as people save models."""

from __future__ import annotations

import bseq_transformers
import pytest
import torch

from bseq_plugin.testing.commands import command_of

command = command_of(bseq_transformers, "transformers")

WORDS = "red blue lip balm nail polish bread milk fresh the a of 24 oz viewed bought it again".split()  # noqa: SIM905


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nobody's real cache is touched."""
    monkeypatch.setenv("BSEQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def save_tiny():
    """A function that writes a tiny model into a folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    def save(folder, seed=0, **settings):
        torch.manual_seed(seed)
        folder.mkdir(parents=True, exist_ok=True)
        characters = [chr(c) for c in range(97, 123)] + [f"##{chr(c)}" for c in range(97, 123)]
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *dict.fromkeys(WORDS + characters)]
        (folder / "vocab.txt").write_text("\n".join(words))
        tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
        config = BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=40, **settings,
        )  # fmt: skip
        BertModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def tiny_model(save_tiny, tmp_path_factory):
    """Nobody may change it."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")
