"""What a backend or a plugin can't do, or does wrongly (docs/faults.md 24, 50)."""

from __future__ import annotations

import pytest
import torch

from bseq_plugin import BseqError, PluginError, Retriever, SequenceEncoder, StoreError
from bseq_plugin.publishing.publish import publish_model


def test_more_than_a_gpu_gives_at_once_is_what_the_cpu_gives(tmp_path, make_model, make_histories, use_fake):
    model = make_model(n_items=2_300, dim=3, whole=True)
    publish_model(model, make_histories(model, [5, 40]), tmp_path / "store")
    exact = Retriever.open(tmp_path / "store", index="exact")
    wanted = {k: exact.retrieve([100, 101], k=k) for k in (100, 2_049, 2_250)}
    use_fake()
    gpu = Retriever.open(tmp_path / "store", index="faiss_gpu")
    for k, answer in wanted.items():  # the GPU gives 2,048 at once, and the items of the histories are left out of them
        found = gpu.retrieve([100, 101], k=k)
        assert len(found) == 2 * k
        assert found.item_id.tolist() == answer.item_id.tolist()
        assert found.score.tolist() == answer.score.tolist()


@pytest.mark.parametrize(
    ("fault", "error"), [("shape", PluginError), ("rows", PluginError), ("type", PluginError), ("nan", StoreError)]
)
def test_an_encoder_that_gives_nonsense_is_named(tmp_path, make_model, make_histories, fault, error):
    class Odd(SequenceEncoder):
        name = "odd"

        def states_at(self, events, rows_Q):
            states_QD = events.x_TD[rows_Q]
            return {
                "shape": states_QD[:, :-1],
                "rows": states_QD[1:],
                "type": states_QD.tolist(),
                "nan": states_QD * torch.nan,
            }[fault]

        def forward(self, events):
            raise AssertionError("the newest states are asked for, no others")

    model = make_model()
    model.encoder.sequence_encoder.part = Odd(6, 20, 0.0)
    with pytest.raises(
        BseqError, match="encoder 'odd'" if error is PluginError else "interests of 2 users have NaN"
    ) as caught:
        publish_model(model, make_histories(model, [3, 5]), tmp_path / "store")
    assert caught.type is error
    assert not (tmp_path / "store").exists()
