"""Publishing a run on partitions, a part at a time: what is there is what publishing it from memory leaves."""

import errno
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bseq_plugin import InterestModel, Retriever, Run, SchemaError, StoreError, UsageError, publish, train
from bseq_plugin.data.interest_files import InterestFiles, TableStream
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.publishing import write_version
from bseq_plugin.publishing.history_parts import InMemory, InPartitions, hashed, repeated_users
from bseq_plugin.publishing.publish import histories_of_run
from bseq_plugin.readers.build_sequences import build_sequences
from bseq_plugin.readers.seal import seal
from bseq_plugin.store.store import Store


@pytest.fixture(scope="module")
def trained(tiny_source, tiny_recipe, tmp_path_factory):
    """A run on four partitions, of 60 users."""
    folder = tmp_path_factory.mktemp("streamed")
    log = build_sequences(str(tiny_source), folder / "parts", partitions=4)
    train(log, tiny_recipe.replace(training={"epochs": 1}), folder / "run", progress=False)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy that may be spoilt, with its partitions."""
    shutil.copytree(trained, tmp_path / "copy")
    info = json.loads((tmp_path / "copy" / "run" / "run.json").read_text())
    info["partitions"] = str(tmp_path / "copy" / "parts")
    (tmp_path / "copy" / "run" / "run.json").write_text(json.dumps(info))
    return tmp_path / "copy" / "run"


def encoded(monkeypatch):
    """Users that the plain model is asked to encode, as it is asked."""
    counted, encode = [], InterestModel.encode

    def counting(self, histories, **options):
        counted.append(histories.n_users)
        return encode(self, histories, **options)

    monkeypatch.setattr(InterestModel, "encode", counting)
    return counted


@pytest.mark.parametrize("known", [True, False])
def test_it_is_what_publishing_from_memory_leaves(run, tmp_path, monkeypatch, known):
    """With the interests that the run has written nobody but the sample is encoded; without them, everybody is."""
    monkeypatch.setattr(write_version, "N_SAMPLED", 20)
    if not known:
        shutil.rmtree(run / "interests")
    model = InterestModel.from_run(run)
    log = PartitionedSequences.open(run.parent / "parts")
    publish(run, tmp_path / "memory", histories=log.read_all(model.vocabulary))
    counted = encoded(monkeypatch)
    publish(run, tmp_path / "parts")
    assert sum(counted) == (20 if known else 80)
    monkeypatch.undo()
    one, two = (Store(tmp_path / name).current() for name in ("memory", "parts"))
    for name in ("item_ids.parquet", "popular.parquet", "sequences.parquet"):
        assert pq.read_table(one.file(name)).equals(pq.read_table(two.file(name))), name
    interests = [pd.read_parquet(version.file("interests.parquet")) for version in (one, two)]
    pd.testing.assert_frame_equal(*(frame.drop(columns="vector") for frame in interests))
    np.testing.assert_allclose(*(np.stack(frame["vector"]) for frame in interests), rtol=1e-4, atol=1e-5)
    for field in ("n_users", "n_events", "watermark_us", "interests_per_user", "n_items", "dim", "item_table_hash"):
        assert one.manifest[field] == two.manifest[field], field
    assert one.manifest["golden"]["users"] == two.manifest["golden"]["users"]
    users = log.read_all(model.vocabulary).user_ids
    hits = [Retriever.open(tmp_path / name).retrieve(users, k=5) for name in ("memory", "parts")]
    assert hits[0]["item_id"].tolist() == hits[1]["item_id"].tolist()


def test_dropped_items_are_unknown_in_the_histories_and_interests_are_made_anew(run, tmp_path):
    model = InterestModel.from_run(run)
    rows = np.arange(model.vocabulary.n_items + 1)
    rows[3:] -= 1
    rows[2] = 0
    parts = histories_of_run(Run(run), model)
    assert isinstance(parts, InPartitions)
    assert parts.interests is not None
    moved = parts.moved(rows)
    for before, after in zip(parts.parts(), moved.parts(), strict=True):
        assert before.interests_UKD is not None
        assert after.interests_UKD is None
        np.testing.assert_array_equal(after.histories.items, rows[before.histories.items])
    twice = moved.moved(rows[: model.vocabulary.n_items])
    for before, after in zip(parts.parts(), twice.parts(), strict=True):
        np.testing.assert_array_equal(after.histories.items, rows[rows[before.histories.items]])


@pytest.mark.parametrize("n", [1, 7, 59, 60, 512])
def test_a_sample_is_spread_over_all_partitions(run, n):
    model = InterestModel.from_run(run)
    parts = histories_of_run(Run(run), model)
    everybody = PartitionedSequences.open(run.parent / "parts").read_all(model.vocabulary)
    places, sample = parts.sample(n)
    assert places.tolist() == np.linspace(0, 59, min(n, 60)).astype(int).tolist()
    wanted = everybody.take(places)
    np.testing.assert_array_equal(sample.user_ids, wanted.user_ids)
    np.testing.assert_array_equal(sample.items, wanted.items)


def test_interests_of_another_model_or_log_are_not_used(run):
    model = InterestModel.from_run(run)
    head = run / "interests" / "interests.json"
    document = json.loads(head.read_text())
    assert histories_of_run(Run(run), model).interests is not None
    for field in ("model_blake3", "log_sha256", "schema"):
        head.write_text(json.dumps({**document, field: "another"}))
        assert histories_of_run(Run(run), model).interests is None
    for text in ("", "[]", "{}"):
        head.write_text(text)
        assert histories_of_run(Run(run), model).interests is None
    head.unlink()
    assert histories_of_run(Run(run), model).interests is None


def test_interests_of_another_seed_are_not_used_by_an_encoder_without_weights(run, tiny_recipe, tmp_path):
    """``mean`` has next to none: what differs is the item table."""
    log, runs = PartitionedSequences.open(run.parent / "parts"), [tmp_path / "0", tmp_path / "1"]
    for seed, path in enumerate(runs):
        recipe = tiny_recipe.replace(encoder="mean", training={"epochs": 1, "seed": seed})
        train(log, recipe, path, progress=False)
    shutil.rmtree(runs[0] / "interests")
    shutil.copytree(runs[1] / "interests", runs[0] / "interests")
    assert histories_of_run(Run(runs[0]), InterestModel.from_run(runs[0])).interests is None
    assert histories_of_run(Run(runs[1]), InterestModel.from_run(runs[1])).interests is not None


FAULTS = ["torn", "flipped", "no vectors", "fewer groups", "other users", "narrow", "missing", "nan"]


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_interests_are_named_and_nothing_is_published(run, tmp_path, fault):
    part = run / "interests" / "part-00002.parquet"
    table = pq.read_table(part)
    if fault == "torn":
        part.write_bytes(part.read_bytes()[:-20])
    elif fault == "flipped":
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
    elif fault == "missing":
        part.unlink()
    elif fault == "no vectors":
        pq.write_table(table.drop_columns("vector"), part)
    elif fault == "fewer groups":
        pq.write_table(table.slice(0, 0), part)
    elif fault == "other users":
        pq.write_table(table.take(np.arange(len(table))[::-1]), part)
    else:
        vectors = np.stack(table["vector"].to_pandas())
        vectors = vectors[:, :-1] if fault == "narrow" else np.full_like(vectors, np.nan)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        pq.write_table(table.set_column(table.column_names.index("vector"), "vector", column), part)
    if fault not in ("torn", "flipped", "missing"):  # as if they had been written so
        InterestFiles(run / "interests").seal(run / "model", PartitionedSequences.open(run.parent / "parts").digest)
    wanted = (StoreError, "interests of .* users have NaN") if fault == "nan" else (SchemaError, "part-00002")
    with pytest.raises(wanted[0], match=wanted[1]):
        publish(run, tmp_path / "store")
    assert Store(tmp_path / "store").versions() == []
    assert not list((tmp_path / "store" / "versions").iterdir())


def test_a_user_in_two_partitions_is_refused(run, tmp_path):
    """As another engine might deal them out."""
    parts = run.parent / "parts"
    first, second = (pq.read_table(parts / f"part-0000{n}.parquet") for n in (0, 1))
    twice = pa.concat_tables([second, first.slice(0, 1)])
    log = PartitionedSequences.open(parts)
    pq.write_table(twice, parts / "part-00001.parquet")
    with pytest.raises(SchemaError, match=f"user {first['user_id'][0]} stands in .*part-00000"):
        seal(parts)
    size, n_events = (parts / "part-00001.parquet").stat().st_size, len(twice["item_ids"].combine_chunks().flatten())
    described = replace(log.partitions[1], users=twice.num_rows, events=n_events, bytes=size)
    log = replace(log, partitions=[log.partitions[0], described, *log.partitions[2:]])
    log.save_head()
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "log_sha256": log.digest}))
    with pytest.raises(UsageError, match=f"1 users stand twice .* for example \\[{first['user_id'][0]}\\]"):
        publish(run, tmp_path / "store")
    assert Store(tmp_path / "store").versions() == []


def test_one_hash_by_chance_is_no_user_twice(make_model, make_histories, monkeypatch):
    histories = make_histories(make_model(), [2, 3, 4])
    assert repeated_users(InMemory(histories), hashed(histories)) == []
    monkeypatch.setattr("bseq_plugin.publishing.history_parts.hashed", lambda part: np.zeros(part.n_users, np.uint64))
    assert repeated_users(InMemory(histories), np.zeros(3, np.uint64)) == []
    twice = histories.take(np.array([0, 1, 1]))
    assert repeated_users(InMemory(twice), np.zeros(3, np.uint64)) == [histories.user_ids[1]]


def test_a_part_of_text_ids_without_events_is_no_other_schema(tiny_frame, tiny_recipe, tmp_path):
    """As another engine may write it: a row group whose users have done nothing, before and behind the others."""
    named = {name: tiny_frame[name].map(f"{name[0]}{{}}".format) for name in ("user_id", "item_id")}
    tiny_frame.assign(**named).to_csv(tmp_path / "log.csv", index=False)
    parts = build_sequences(str(tmp_path / "log.csv"), tmp_path / "parts", partitions=2).folder
    for number in (0, 1):
        path = parts / f"part-0000{number}.parquet"
        table = pq.read_table(path)
        nobody = {name: [] for name in table.column_names} | {"user_id": f"nobody {number}"}
        groups = [pa.Table.from_pylist([nobody], table.schema), table]
        with pq.ParquetWriter(path, table.schema) as writer:
            for group in groups[:: -1 if number else 1]:
                writer.write_table(group)
    run = train(seal(parts), tiny_recipe.replace(training={"epochs": 1}), tmp_path / "run", progress=False)
    publish(run, tmp_path / "store")
    served = Retriever.open(tmp_path / "store").histories
    assert {"nobody 0", "nobody 1"} < set(served.user_ids)
    assert served.n_events == len(tiny_frame)


def test_a_disk_that_fills_under_the_users_publishes_nothing(run, tmp_path, monkeypatch):
    def fills(self, table):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TableStream, "write", fills)
    with pytest.raises(StoreError, match="No space left on device; nothing was published"):
        publish(run, tmp_path / "store")
    assert not list((tmp_path / "store" / "versions").iterdir())


def test_histories_in_memory_are_encoded_in_parts(make_model, make_histories, tmp_path, monkeypatch):
    model = make_model()
    histories = make_histories(model, [3, 0, 5, 1, 9, 2, 7])
    whole = list(InMemory(histories).parts())
    monkeypatch.setattr("bseq_plugin.publishing.history_parts.USERS", 3)
    parts = list(InMemory(histories).parts())
    assert [part.histories.n_users for part in parts] == [3, 3, 1]
    found = torch.cat([model.encode(part.histories) for part in parts])
    torch.testing.assert_close(found, model.encode(whole[0].histories), rtol=1e-5, atol=1e-6)


def test_rows_that_are_completed_after_training_leave_no_interests_of_others(
    tiny_source, tiny_frame, tiny_recipe, tmp_path
):
    """With item encoders the exported rows are not those that the sharded tables hold."""
    log = build_sequences(str(tiny_source), tmp_path / "parts", partitions=2)
    ids = np.sort(tiny_frame["item_id"].unique())
    items = pd.DataFrame({"item_id": ids, "colour": np.where(np.arange(len(ids)) % 3, "red", "blue")})
    columns = {"name": "columns", "categories": ["colour"]}
    recipe = tiny_recipe.replace(items={"encoders": [columns]}, training={"epochs": 1})
    run = train(log, recipe, tmp_path / "run", items=items, progress=False)
    assert not (run.path / "interests").exists()
    publish(run, tmp_path / "store")
    served = Retriever.open(tmp_path / "store")
    stored = pd.read_parquet(Store(tmp_path / "store").current().file("interests.parquet"))
    found = served.model.encode(served.histories)[:, 0].numpy()
    np.testing.assert_allclose(np.stack(stored["vector"]), found, rtol=1e-4, atol=1e-5)
