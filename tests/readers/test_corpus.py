"""Every file of the corpus means one thing, in memory, out of core and sealed: these events, or this error."""

import csv
import re
import shutil

import log_corpus
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import BseqError, SchemaError, Sequences, Vocabulary, read_events
from bseq_plugin.readers.build_sequences import build_sequences
from bseq_plugin.readers.seal import seal

CORPUS = log_corpus.corpus()


def test_the_corpus_is_large():
    assert len(CORPUS) >= 300
    assert sum(case.error is not None for case in CORPUS) >= 80


def message(do):
    with pytest.raises(BseqError) as caught:
        do()
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def histories(sequences, vocabulary):
    """User -> events as the log has them, sessions by the order they begin in."""
    names = np.array(["", *vocabulary.event_types], dtype=object)
    found = {}
    for place, user in enumerate(sequences.user_ids.tolist()):
        own = slice(sequences.offsets[place], sequences.offsets[place + 1])
        columns = [vocabulary.item_ids[sequences.items[own] - 1].tolist()]
        columns += [None if sequences.timestamps is None else sequences.timestamps[own].tolist()]
        columns += [None if sequences.event_types is None else names[sequences.event_types[own]].tolist()]
        columns += [None if sequences.session_ids is None else pd.factorize(sequences.session_ids[own])[0].tolist()]
        if columns[0]:
            found[user] = columns
    return found


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_one_meaning(case, tmp_path):
    source = case.write(tmp_path)
    out = tmp_path / "out"
    if case.error is not None:
        told = message(lambda: read_events(str(source), **case.how))
        assert re.search(case.error, told), told
        assert message(lambda: build_sequences(str(source), out, partitions=2, **case.how)) == told
        assert not out.exists()
        if case.name.startswith("lists"):
            sealed = message(lambda: seal(tmp_path))
            assert sealed.replace(str(tmp_path), "") == told.replace(f"{source}: ", ": ").replace(str(tmp_path), "")
        return
    events = read_events(str(source), **case.how)
    assert list(events.frame.itertuples(index=False, name=None)) == case.events
    assert list(events.frame) == list(case.columns)
    vocabulary = Vocabulary.from_events(events)
    expected = histories(Sequences.from_events(events, vocabulary), vocabulary)
    parts = build_sequences(str(source), out, partitions=2, memory_mb=300, **case.how)
    assert histories(parts.read_all(parts.vocabulary), parts.vocabulary) == expected
    assert parts.summary == {**events.summary.to_dict()}
    (out / "sequences.json").unlink()
    (out / "items.parquet").unlink()
    sealed = seal(out)
    assert histories(sealed.read_all(sealed.vocabulary), sealed.vocabulary) == expected
    assert sealed.vocabulary.item_counts.tolist() == parts.vocabulary.item_counts.tolist()
    shutil.rmtree(out)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)
rows_of_text = st.lists(st.tuples(texts, texts, st.integers(0, 7 * 10**8)), min_size=1, max_size=12)


@given(rows_of_text, st.sampled_from(",;|\t"), st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_whatever_a_csv_writer_writes_is_read_back(tmp_path_factory, rows, separator, quoting, mark):
    """Ids of any text, in any dialect; an empty field is a null, and whole numbers alone are numbers."""
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    with path.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator="\n")
        writer.writerow(["user_id", "item_id", "timestamp"])
        writer.writerows((user, item, 10**9 + t) for user, item, t in rows)
    how = {"timestamp_unit": "s"}
    if any("" in row[:2] for row in rows):
        with pytest.raises(SchemaError, match="nulls, the first in row"):
            read_events(path, **how)
        rows = [row for row in rows if "" not in row[:2]]
        how["on_null"] = "drop"
        if not rows:
            return
    columns = [written([row[place] for row in rows]) for place in range(2)]
    if None in columns:
        with pytest.raises(SchemaError, match="has id -|written as floats"):
            read_events(path, **how)
        return
    found = read_events(path, **how).frame
    assert found.user_id.tolist() == columns[0]
    assert found.item_id.tolist() == columns[1]
    assert found.timestamp.tolist() == [(10**9 + row[2]) * 10**6 for row in rows]


def written(ids):
    """What a column of text means, in plain Python; None = it is refused."""
    whole = [re.fullmatch(r"-?(0|[1-9][0-9]*)", one) and one != "-0" and abs(int(one)) < 2**63 for one in ids]
    if all(whole):
        return None if any(one.startswith("-") for one in ids) else [int(one) for one in ids]
    numbers = all(re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?", one) for one in ids)
    return None if numbers and any("." in one for one in ids) else ids
