"""Pseudonyms of user ids: the published HMAC, the same user under the same name, nobody else under it."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Events, Pseudonymiser, SchemaError, UsageError, read_events

KEY = b"0123456789abcdef"


def test_the_test_case_of_rfc_4231():
    assert Pseudonymiser(b"\x0b" * 20).pseudonym("Hi There") == "b0344c61d8db38535ca8afceaf0bf12b"


def test_a_number_and_its_text_are_one_user_and_another_key_gives_other_names():
    hide = Pseudonymiser(KEY)
    assert hide.pseudonym(7) == hide.pseudonym("7") == hide.pseudonym(np.int64(7))
    assert hide.pseudonym(7) != hide.pseudonym("07")
    assert hide.pseudonym(7) != Pseudonymiser(KEY[::-1]).pseudonym(7)


@settings(deadline=None)
@given(st.lists(st.one_of(st.text(min_size=1, max_size=5), st.just("7")), min_size=1, max_size=20))
def test_rows_of_one_user_stay_together_and_rows_of_two_apart(ids):
    ids = [one for one in ids if one.isprintable()] or ["7"]
    names = Pseudonymiser(KEY).pseudonyms(pd.Series(ids, index=np.arange(len(ids)) + 5))
    assert list(names.index) == list(range(5, len(ids) + 5))
    assert np.array_equal(pd.factorize(names)[0], pd.factorize(pd.Series(ids))[0])
    assert names.str.fullmatch("[0-9a-f]{32}").all()


def test_only_the_user_column_changes(tiny_frame):
    hide = Pseudonymiser(KEY)
    plain, hidden = read_events(tiny_frame), read_events(tiny_frame, pseudonymise=hide)
    pd.testing.assert_frame_equal(plain.frame.drop(columns="user_id"), hidden.frame.drop(columns="user_id"))
    assert hidden.frame["user_id"].tolist() == [hide.pseudonym(user) for user in plain.frame["user_id"]]
    # what comes out is a valid log
    assert len(Events.from_frame(hidden.frame, timestamp_unit="us")) == len(plain)


def test_a_user_written_in_two_ways():
    with pytest.raises(SchemaError, match="one user in two ways"):
        Pseudonymiser(KEY).pseudonyms(pd.Series([7, "7"], dtype=object))


def test_keys_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="at least 16"):
        Pseudonymiser(b"short")
    with pytest.raises(UsageError, match="can't be read"):
        Pseudonymiser.from_file(tmp_path / "missing")
    (tmp_path / "key").write_bytes(KEY + b"\r\n")
    assert Pseudonymiser.from_file(tmp_path / "key").key == KEY
    assert KEY.decode() not in repr(Pseudonymiser(KEY))


def test_partitions_have_the_same_pseudonyms(tmp_path, tiny_frame):
    from bseq_plugin.readers.build_sequences import build_sequences

    hide = Pseudonymiser(KEY)
    tiny_frame.to_csv(tmp_path / "log.csv", index=False)
    found = build_sequences(str(tmp_path / "log.csv"), tmp_path / "parts", partitions=2, pseudonymise=hide)
    users = [user for part in found.partitions for user in pd.read_parquet(found.folder / part.file).user_id]
    assert sorted(users) == sorted({hide.pseudonym(user) for user in tiny_frame.user_id})
