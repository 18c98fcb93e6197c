"""Every file of the corpus means one thing, in memory, out of core and sealed: these events, or this error."""

import shutil

import log_corpus
import numpy as np
import pandas as pd
import pytest

from bseq_plugin import BseqError, Sequences, Vocabulary, read_events
from bseq_plugin.data.partitions import PartitionedSequences
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
        assert __import__("re").search(case.error, told), told
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
    for part in out.glob("part-*.parquet"):  # a part with nobody in it is no part of another engine
        if not PartitionedSequences(out, [], []).n_users and part.stat().st_size == 0:
            part.unlink()
    sealed = seal(out)
    assert histories(sealed.read_all(sealed.vocabulary), sealed.vocabulary) == expected
    assert sealed.vocabulary.item_counts.tolist() == parts.vocabulary.item_counts.tolist()
    shutil.rmtree(out)
