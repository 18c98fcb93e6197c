"""A catalogue that is ranked in chunks gives the lists of one that is ranked at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Events, top_k_items, train
from bseq_plugin.training import validation


@settings(max_examples=60, deadline=None)
@given(
    n_items=st.integers(1, 40),
    n_interests=st.integers(1, 3),
    chunk=st.integers(2, 17),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
    masked=st.booleans(),
    users=st.sampled_from([2, 64]),
)
def test_chunks_are_the_whole(n_items, n_interests, chunk, k, seed, masked, users):
    random = np.random.default_rng(seed)
    # whole numbers: scores are exact, and many are equal, so that ties are put to the test
    vectors = torch.from_numpy(random.integers(-2, 3, (n_items + 1, 4)).astype(np.float32))
    interests = torch.from_numpy(random.integers(-2, 3, (5, n_interests, 4)).astype(np.float32))
    lengths = random.integers(0, 6, 5)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    excluded = (offsets, random.integers(0, n_items + 1, offsets[-1])) if masked else None
    chunks = ((first, vectors[first : first + chunk]) for first in range(0, n_items + 1, chunk))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "USERS_PER_CALL", users)
        found = validation._top_of_chunks(interests, chunks, k, excluded)
    assert found.tolist() == top_k_items(interests, vectors, k, excluded).tolist()


@pytest.mark.parametrize("similarity", ["inner", "cosine"])
def test_a_run_validated_in_chunks_is_the_same_run(tiny_frame, tiny_recipe, tmp_path, monkeypatch, similarity):
    events, recipe = Events.from_frame(tiny_frame), tiny_recipe.replace(vectors={"similarity": similarity})
    whole = train(events, recipe, tmp_path / "whole", progress=False)
    monkeypatch.setattr(validation, "ITEMS_PER_CALL", 7)
    chunked = train(events, recipe, tmp_path / "chunked", progress=False)
    assert chunked.info["validation"] == pytest.approx(whole.info["validation"], abs=1e-9)
