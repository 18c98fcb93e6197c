"""A version must not answer for a time before it was trained, unless told to."""

import numpy as np
import pandas as pd
import pytest

from bseq_plugin import Retriever, UsageError
from bseq_plugin.publishing.publish import publish_model


def test_an_instant_before_the_end_of_training_is_refused(make_model, make_histories, tmp_path):
    model = make_model()
    histories = make_histories(model, [5, 6])
    publish_model(model, histories, tmp_path / "store", index="exact")
    retriever = Retriever.open(tmp_path / "store")
    end = pd.Timestamp(model.trained_until_us, unit="us", tz="UTC")
    with pytest.raises(UsageError, match="lies before the end of training"):
        retriever.retrieve([100], at=end)
    assert len(retriever.retrieve([100], at=end + pd.Timedelta(1, "us")))
    assert len(retriever.retrieve([100], at=end, allow_future_model=True))


def test_a_poll_reads_no_version_that_is_served_already(make_model, make_histories, tmp_path, monkeypatch):
    model = make_model()
    publish_model(model, make_histories(model, [5]), tmp_path / "store", index="exact")
    retriever = Retriever.open(tmp_path / "store")
    monkeypatch.setattr(type(retriever._store), "verify", lambda *a: pytest.fail("hashed the version again"))
    assert retriever.refresh() is False
    assert np.isfinite(retriever.retrieve([100]).score).all()
