"""Wrong use: exit code 2 (or 1 for a failure), one or two lines on stderr, no traceback, nothing half-written."""

import numpy as np
import pandas as pd
import pytest

SECONDS = 1_600_000_000


def log(**columns):
    base = {
        "user_id": [1, 1, 1, 2, 2, 2],
        "item_id": [1, 2, 3, 2, 3, 1],
        "timestamp": pd.to_datetime([SECONDS + n for n in range(6)], unit="s", utc=True),
    }
    return pd.DataFrame({**base, **columns})


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture
def refused(bseq, tmp_path):
    """A function that runs a command that must fail with ``code``, say ``words``, and leave ``tmp_path`` as it was."""

    def check(code, words, *args, also=()):
        before = [snapshot(folder) for folder in (tmp_path, *also)]
        found, out, err = bseq(*args)
        assert found == code, (found, err)
        assert out == ""
        assert "Traceback" not in err
        assert 1 <= len(err.strip().splitlines()) <= 2, err
        for word in words:
            assert word in err, (word, err)
        assert [snapshot(folder) for folder in (tmp_path, *also)] == before

    return check


LOGS = {
    "missing column": (log().drop(columns="item_id"), ["lack column 'item_id'"]),
    "null": (log(item_id=pd.Series([1, None, 3, 1, 2, 3], dtype="Int64")), ["'item_id' has 1 nulls", "row 1"]),
    "negative": (log(user_id=[1, 1, 1, -2, 2, 2]), ["id -2 in row 3"]),
    "float ids": (log(item_id=[1.5] * 6), ["log.parquet: column 'item_id' holds float values"]),
    "naive": (log(timestamp=pd.to_datetime([SECONDS] * 6, unit="s")), ["row 0", "has no time zone", "--time-zone"]),
    "integers": (log(timestamp=[SECONDS] * 6), ["say their unit"]),
    "empty": (log().iloc[:0], ["the log is empty"]),
    "single events": (log(user_id=range(6)), ["3 events or more"]),
    "two events": (log(user_id=[1, 1, 2, 2, 3, 3]), ["3 events or more"]),
}


@pytest.mark.parametrize("name", LOGS)
def test_a_bad_log(refused, tmp_path, name):
    frame, words = LOGS[name]
    frame.to_parquet(tmp_path / "log.parquet")
    refused(2, words, "train", tmp_path / "log.parquet", "--out", tmp_path / "run")


def test_seconds_taken_for_milliseconds(refused, tmp_path):
    log(timestamp=[SECONDS] * 6).to_parquet(tmp_path / "log.parquet")
    train = ("train", tmp_path / "log.parquet", "--out", tmp_path / "run", "--timestamp-unit")
    refused(2, ["before 1990", "another unit"], *train, "ms")
    refused(2, ["--timestamp-unit h: use s, ms or us"], *train, "h")


def test_single_events_without_a_split(refused, tmp_path):
    log(user_id=range(6)).to_parquet(tmp_path / "log.parquet")
    refused(
        2, ["two or more events"], "train", tmp_path / "log.parquet", "--out", tmp_path / "run", "--set", "split=none"
    )


def test_a_single_user_is_enough(bseq, tmp_path, tiny_settings):
    """One history of nine events: the documented behaviour is a run, a store and candidates, as for anybody."""
    n = 9
    times = pd.to_datetime([SECONDS + i for i in range(n)], unit="s", utc=True)
    pd.DataFrame({"user_id": "café", "item_id": [f"i{i % 5}" for i in range(n)], "timestamp": times}).to_parquet(
        tmp_path / "log.parquet"
    )
    seen = ("--set", "split.mask_seen=false")
    for args in (
        ("train", tmp_path / "log.parquet", "--out", tmp_path / "run", *tiny_settings, *seen),
        ("evaluate", tmp_path / "run", "--k", "2"),
        ("publish", tmp_path / "run", "--store", tmp_path / "store"),
        ("retrieve", tmp_path / "store", "--user", "café", "--k", "3", "--exclude", "none"),
    ):
        code, _, err = bseq(*args)
        assert code == 0, err


def test_a_single_user_with_nothing_new_says_so(refused, tmp_path):
    """With seen items masked there is nobody to validate on."""
    log(user_id=1, item_id=[1, 2, 1, 2, 1, 2]).to_parquet(tmp_path / "log.parquet")
    refused(2, ["mask_seen"], "train", tmp_path / "log.parquet", "--out", tmp_path / "run")


RECIPES = {
    "encoder=gru5": ["unknown encoder 'gru5'; there are: ", "causal"],
    "loss=none": ["unknown loss 'none'; there are: ", "softmax"],
    "encodr=mean": ["unknown key 'encodr'; the keys are: ", "encoder"],
    "vectors.dim=0": ["vectors.dim = 0"],
    "vectors.dim=seven": ["vectors.dim = 'seven'"],
    "dim=8": ["unknown key 'dim'", "vectors.dim"],
    "training.epochs": ["write key=value"],
    "encoder.n_bloks=1": ["options of encoder 'causal'", "unknown key 'n_bloks'"],
    "vectors.dim.x=1": ["'vectors.dim' has no keys below it"],
    "training.table.name=adam": ["rowwise_adagrad"],
    "items.attributes=['shelf']": ["--items"],
    "objective.popularity_days=[7.0]": ["objective.kind = 'window'"],
    "split.validation_at=2020-01-01": ["split.validation_at", "split.kind = 'time'"],
}


@pytest.mark.parametrize("setting", RECIPES)
def test_a_bad_setting(refused, tiny_source, tmp_path, setting):
    refused(2, RECIPES[setting], "train", tiny_source, "--out", tmp_path / "run", "--set", setting)


def test_bad_arguments_of_train(refused, bseq, tiny_source, tiny_run, tmp_path):
    out = ("--out", tmp_path / "run")
    refused(2, ["there is no file"], "train", tmp_path / "gone.parquet", *out)
    refused(2, ["no reader recognises"], "train", tmp_path / "log.xlsx", *out)
    refused(
        2, ["unknown recipe 'referense'; there are: ", "reference"], "train", tiny_source, *out, "--recipe", "referense"
    )
    refused(2, ["there is no recipe file"], "train", tiny_source, *out, "--recipe", tmp_path / "gone.toml")
    refused(2, ["--column 'user_id': write key=value"], "train", tiny_source, *out, "--column", "user_id")
    refused(2, ["unknown names ['usr']"], "train", tiny_source, *out, "--column", "usr=user_id")
    refused(2, ["there is no file"], "train", tiny_source, *out, "--items", tmp_path / "gone.csv")
    (tmp_path / "bad.toml").write_text("vectors.dim = = 3")
    refused(2, ["is not valid TOML"], "train", tiny_source, *out, "--recipe", tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b'description = "caf\xe9"')
    refused(2, ["latin.toml"], "train", tiny_source, *out, "--recipe", tmp_path / "latin.toml")
    refused(1, ["already holds a run", "--resume"], "train", tiny_source, "--out", tiny_run, also=[tiny_run])
    code, out, err = bseq("train", tiny_source)
    assert (code, "Traceback" in err, "--out" in err) == (2, False, True)


def test_bad_arguments_of_evaluate(refused, tiny_run, tmp_path):
    refused(1, ["is not a"], "evaluate", tmp_path / "gone")
    refused(2, ["split 'train': use test or validation"], "evaluate", tiny_run, "--split", "train")
    refused(2, ["--k '0': every k is 1 or more"], "evaluate", tiny_run, "--k", "0")
    refused(2, ["--k '5,x'"], "evaluate", tiny_run, "--k", "5,x")
    (tmp_path / "run").mkdir()
    refused(1, ["is not a"], "evaluate", tmp_path / "run")


def test_a_file_that_can_not_be_written_is_refused_before_the_work(refused, tiny_run, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("precious")
    (tmp_path / "log.txt").write_text("1 2 3 4\n2 3 4 2\n")
    for bad in (tmp_path / "folder", tmp_path / "file" / "deep" / "figures.json"):
        refused(2, [str(bad), "folder"], "evaluate", tiny_run, "--json", bad)
        refused(2, [str(bad), "folder"], "benchmark", tmp_path / "log.txt", "--json", bad)


def test_a_cut_off_beyond_the_catalogue_is_no_failure(bseq, tiny_run):
    code, _, err = bseq("evaluate", tiny_run, "--k", "5,1000")
    assert code == 0, err


def test_bad_arguments_of_publish(refused, tiny_run, tmp_path):
    refused(1, ["not a run directory"], "publish", tmp_path / "gone", "--store", tmp_path / "store")
    refused(
        2,
        ["unknown index 'hnswlib'; there are: ", "exact"],
        "publish",
        tiny_run,
        "--store",
        tmp_path / "store",
        "--index",
        "hnswlib",
    )


def test_bad_arguments_of_retrieve(refused, tiny_store, tmp_path):
    store = ("retrieve", tiny_store)
    refused(2, ["one of --user ID, --users FILE, --items"], *store)
    refused(2, ["one of --user ID, --users FILE, --items"], *store, "--user", "1", "--items", "5")
    refused(2, ["--k 0: give a whole number of 1 or more"], *store, "--user", "1", "--k", "0")
    refused(2, ["--k -3"], *store, "--user", "1", "--k", "-3")
    refused(2, ["not in this store version", "[999]"], *store, "--user", "999")
    refused(2, ["--user 'bob': ids here are whole numbers"], *store, "--user", "bob")
    refused(2, ["--items 'milk': ids here are whole numbers"], *store, "--items", "5,milk")
    refused(2, ["--items is empty"], *store, "--items", " , ")
    refused(2, ["--exclude 'all': use seen or none"], *store, "--user", "1", "--exclude", "all")
    refused(1, [str(tmp_path / "gone")], "retrieve", tmp_path / "gone", "--user", "1")
    (tmp_path / "empty").mkdir()
    refused(1, ["empty"], "retrieve", tmp_path / "empty", "--user", "1")
    refused(2, ["ids here are whole numbers"], *store, "--items", str(2**70))
    refused(2, ["ids here are whole numbers"], *store, "--user", str(2**70))


def test_bad_arguments_of_features(refused, tiny_store, tiny_frame, tmp_path):
    good = tmp_path / "pairs.csv"
    tiny_frame[["user_id", "item_id"]].head(3).to_csv(good, index=False)
    at, out = ("--at", "2021-01-01T00:00:00+00:00"), ("--out", tmp_path / "f.parquet")
    refused(2, ["there is no file"], "features", tiny_store, "--candidates", tmp_path / "gone.csv", *at, *out)
    refused(2, ["has no time zone"], "features", tiny_store, "--candidates", good, "--at", "2021-01-01", *out)
    refused(2, ["is not a time"], "features", tiny_store, "--candidates", good, "--at", "soon", *out)
    refused(1, ["gone"], "features", tmp_path / "gone", "--candidates", good, *at, *out)
    (tmp_path / "bad.csv").write_text("user_id,item\n1,2\n")
    refused(2, ["item_id"], "features", tiny_store, "--candidates", tmp_path / "bad.csv", *at, *out)
    refused(
        2,
        ["there is no feature specification"],
        "features",
        tiny_store,
        "--candidates",
        good,
        *at,
        *out,
        "--spec",
        tmp_path / "s.toml",
    )
    (tmp_path / "s.toml").write_text('names = ["sim_maxx"]')
    refused(2, ["sim_maxx"], "features", tiny_store, "--candidates", good, *at, *out, "--spec", tmp_path / "s.toml")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    refused(2, ["binary.csv is not UTF-8"], "features", tiny_store, "--candidates", tmp_path / "binary.csv", *at, *out)


def test_bad_arguments_of_the_others(refused, bseq, tmp_path):
    (tmp_path / "log.txt").write_text("1 2 3 4\n")
    refused(2, ["--seeds 'a'"], "benchmark", tmp_path / "log.txt", "--seeds", "a")
    refused(2, ["unknown recipe 'x'"], "recipes", "x")
    refused(2, ["--data 'movielens'"], "demo", "--data", "movielens", "--out", tmp_path / "demo")
    refused(2, ["unknown key"], "demo", "--out", tmp_path / "demo", "--set", "x=1")
    for args in (("trian",), ("train", "--no-such-option"), ("retrieve", "store", "--k", "many")):
        code, _, err = bseq(*args)
        assert (code, "Traceback" in err) == (2, False)


def test_debug_shows_where(bseq, tmp_path):
    code, _, err = bseq("--debug", "train", tmp_path / "gone.parquet", "--out", tmp_path / "run")
    assert code == 2
    assert "Traceback" in err
    assert "there is no file" in err.splitlines()[-1]


def test_square_brackets_in_a_message_are_no_markup(bseq, tmp_path):
    code, _, err = bseq("train", tmp_path / "[bold]gone[/bold].parquet", "--out", tmp_path / "run")
    assert (code, "[bold]gone[/bold].parquet" in err) == (2, True)


def test_a_damaged_store_is_a_failure_of_one_line(refused, tiny_store, tmp_path):
    import shutil

    shutil.copytree(tiny_store, tmp_path / "store")
    (file,) = (tmp_path / "store" / "versions").glob("*/item_vectors.safetensors")
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    data[-1] ^= 1
    file.write_bytes(data.tobytes())
    refused(1, ["item_vectors.safetensors"], "retrieve", tmp_path / "store", "--user", "1")
