"""No raw user id in what is written, and no trace of a user whose events were deleted."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bseq_plugin import Events, Pseudonymiser, Retriever, publish, ranking_features, read_events, train
from bseq_plugin.store.retention import collect_garbage
from bseq_plugin.store.store import Store

KEY = b"0123456789abcdef"
FIRST = 7_300_000_000_000_000  # user ids that occur nowhere by chance, neither as digits nor as eight bytes


def contents(path):
    """The bytes of a file; of Parquet also what its compressed pages hold, columns one after the other."""
    yield path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        yield sink.getvalue().to_pybytes()


def traces(folder, ids):
    """(file, id) of every id that is found below a folder, as text, or as an integer of eight bytes."""
    needles = {one: [str(one).encode()] for one in ids}
    for one in ids:
        if isinstance(one, int):
            needles[one].append(np.int64(one).tobytes())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return {
        (str(path.relative_to(folder)), one)
        for path in files
        for content in contents(path)
        for one, wanted in needles.items()
        if any(needle in content for needle in wanted)
    }


@pytest.fixture(params=["numbers", "texts"])
def log(request, tiny_frame):
    """The tiny log with telling user ids."""
    users = tiny_frame["user_id"] + FIRST
    if request.param == "texts":
        users = "anna." + users.astype(str) + "@example.org"
    return tiny_frame.assign(user_id=users)


def everything(events, recipe, folder):
    """A run, a store, candidates and features of all users."""
    run = train(events, recipe, folder / "run", progress=False)
    publish(run, folder / "store", index="exact")
    retriever = Retriever.open(folder / "store")
    candidates = retriever.retrieve(retriever.histories, 3)
    candidates.to_parquet(folder / "candidates.parquet")
    at = pd.Timestamp(int(retriever.histories.timestamps.max()) + 1, unit="us", tz="UTC")
    features = ranking_features(candidates, retriever.histories, at, model=retriever.model)
    features.to_parquet(folder / "features.parquet")
    return retriever


def test_no_raw_id_is_written_anywhere(log, tiny_recipe, tmp_path):
    ids = log["user_id"].unique().tolist()
    hide = Pseudonymiser(KEY)
    retriever = everything(read_events(log, pseudonymise=hide), tiny_recipe, tmp_path)
    assert traces(tmp_path, ids) == set()
    assert traces(tmp_path, [KEY.decode()]) == set()
    assert set(retriever.histories.user_ids) == {hide.pseudonym(one) for one in ids}
    # checkpoints and reports are there to be looked into
    assert list((tmp_path / "run" / "checkpoints").rglob("*.distcp"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text()


def test_pseudonyms_change_nothing_but_names(log, tiny_recipe, tmp_path):
    """Users are walked through in the order of their ids, so give them ids in the order of their pseudonyms."""
    hide = Pseudonymiser(KEY)
    names = sorted(hide.pseudonym(one) for one in log["user_id"].unique())
    ordered = log["user_id"].map(lambda one: names.index(hide.pseudonym(one)))
    plain = train(Events.from_frame(log.assign(user_id=ordered)), tiny_recipe, tmp_path / "plain", progress=False)
    hidden = train(read_events(log, pseudonymise=hide), tiny_recipe, tmp_path / "hidden", progress=False)
    for name in ("items.safetensors", "encoder.safetensors"):
        assert (plain.path / "model" / name).read_bytes() == (hidden.path / "model" / name).read_bytes()


def test_the_search_for_traces_finds_them(log, tiny_recipe, tmp_path):
    """The tests here are worth something only if they would notice."""
    ids = log["user_id"].unique().tolist()
    everything(read_events(log), tiny_recipe, tmp_path)
    files = {file.rpartition("/")[2] for file, _ in traces(tmp_path, ids)}
    assert {"sequences.parquet", "interests.parquet", "candidates.parquet", "features.parquet"} <= files


def test_a_deleted_user_leaves_no_trace(log, tiny_recipe, tmp_path, monkeypatch):
    """Delete the events, train, publish to the same store, collect the old version: as if the user had never been."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    gone = log["user_id"].tolist()[0]
    only_theirs = 9_100_000_000_000_001  # an item that nobody else ever had
    log = log.assign(item_id=log["item_id"].where((log["user_id"] != gone) | (log.index != 0), only_theirs))
    store = Store(tmp_path / "kept" / "store")
    before = train(Events.from_frame(log), tiny_recipe, tmp_path / "old-run", progress=False)
    publish(before, store, index="exact")
    assert {one for _, one in traces(tmp_path / "kept", [gone, only_theirs])} == {gone, only_theirs}

    rest = Events.from_frame(log[log["user_id"] != gone])
    after = train(rest, tiny_recipe, tmp_path / "kept" / "run", progress=False)
    publish(after, store, index="exact")
    collect_garbage(store, keep=1, grace_seconds=0)

    assert traces(tmp_path / "kept", [gone, only_theirs]) == set()
    publish(after, tmp_path / "never" / "store", index="exact")
    never = Store(tmp_path / "never" / "store")
    for path in store.folder(store.current_name()).iterdir():
        twin = never.folder(never.current_name()) / path.name
        if path.name == "MANIFEST.json":
            ours, theirs = json.loads(path.read_text()), json.loads(twin.read_text())
            assert {k for k in ours if ours[k] != theirs[k]} <= {"number", "parent"}
        else:
            assert path.read_bytes() == twin.read_bytes(), path.name
