"""Good use of every command."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from bseq_plugin import (
    InterestModel,
    Retriever,
    Run,
    Sequences,
    __version__,
    benchmark,
    evaluate,
    instant_us,
    read_events,
    train,
)
from bseq_plugin.data.splits import HeldOut, time_window
from bseq_plugin.evaluation.rankers import default_baselines, fitted_rankers, interest_ranker, served_ranker
from bseq_plugin.evaluation.report import compare
from bseq_plugin.events.events import DAY_US
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.serving.fit_blend import search_blend

COMMANDS = ["demo", "train", "evaluate", "fit-blend", "publish", "retrieve", "features", "benchmark"]
COMMANDS += ["plugins", "recipes", "doctor"]


def test_help_lists_the_commands(bseq):
    code, out, _ = bseq("--help")
    assert code == 0
    assert [name for name in COMMANDS if name not in out] == []
    assert bseq("--version")[1].strip() == f"bseq {__version__}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_an_example(bseq, name):
    code, out, _ = bseq(name, "--help")
    assert code == 0
    assert "Example: " in out
    assert f"bseq {name}" in out.split("Example: ")[1]


def test_train_leaves_a_run(bseq, tiny_source, tiny_settings, tiny_run, tmp_path):
    code, out, err = bseq("train", tiny_source, "--out", tmp_path / "run", *tiny_settings)
    assert (code, out) == (0, "")
    assert "best epoch" in err
    assert str(tmp_path / "run") in err
    run, same = Run(tmp_path / "run"), Run(tiny_run)
    assert run.recipe == same.recipe
    weights = [InterestModel.from_run(r.path).item_vectors_VD for r in (run, same)]
    assert weights[0].equal(weights[1])  # the command and the function are one code path
    assert bseq("train", tiny_source, "--out", tmp_path / "run", *tiny_settings, "--resume")[0] == 0


def test_train_reads_a_recipe_file_other_columns_and_an_items_table(bseq, tiny_frame, tmp_path):
    log = tiny_frame.rename(columns={"user_id": "household", "timestamp": "t"})
    log["t"] = log.t.dt.as_unit("s").astype("int64")
    log.to_csv(tmp_path / "log.csv", index=False)
    items = pd.DataFrame({"item_id": np.arange(30) * 10 + 5, "shelf": ["a", "b", "c"] * 10})
    items.to_csv(tmp_path / "items.csv", index=False)
    (tmp_path / "mine.toml").write_text(
        'description = "mine"\nencoder = "mean"\nvectors.dim = 8\n[items]\nattributes = ["shelf"]\n'
        "[training]\nepochs = 1\n"
    )
    code, _, err = bseq(
        "train",
        tmp_path / "log.csv",
        "--out",
        tmp_path / "run",
        "--recipe",
        tmp_path / "mine.toml",
        "--items",
        tmp_path / "items.csv",
        "--column",
        "user_id=household",
        "--column",
        "timestamp=t",
        "--timestamp-unit",
        "s",
        "--set",
        "vectors.similarity=cosine",
        "--set",
        "training.batch.users=16",
    )
    assert code == 0, err
    recipe = Run(tmp_path / "run").recipe
    assert (recipe.encoder.name, recipe.items.attributes, recipe.training.batch.users) == ("mean", ("shelf",), 16)
    assert (recipe.vectors.similarity.kind, recipe.vectors.dim) == ("cosine", 8)


def test_evaluate_writes_what_it_shows(bseq, tiny_run, tmp_path):
    code, out, err = bseq("evaluate", tiny_run, "--k", "10,5", "--json", tmp_path / "deep" / "figures.json")
    assert code == 0, err
    document = json.loads((tmp_path / "deep" / "figures.json").read_text())
    assert document["protocol"]["part"] == "test"
    assert set(document["baselines"]) >= {"popularity"}
    same = json.loads(json.dumps(evaluate(tiny_run, "test", [5, 10]).to_dict()))
    assert {**document, "seconds": None} == {**same, "seconds": None}
    for name in ("recall@5", "recall@10", "ndcg@10", "mrr@5", "coverage@10"):
        assert 0 <= document["model"][name] <= 1
    assert f"{document['model']['ndcg@10']:.4f}" in out
    validation = bseq("evaluate", tiny_run, "--split", "validation", "--k", "10", "--json", tmp_path / "v.json")
    assert validation[0] == 0
    figures = json.loads((tmp_path / "v.json").read_text())["model"]
    for name, value in Run(tiny_run).info["validation"].items():
        assert figures[name] == pytest.approx(value, abs=1e-9)


def test_publish_and_retrieve(bseq, tiny_run, tiny_frame, tmp_path):
    code, _, err = bseq("publish", tiny_run, "--store", tmp_path / "store")
    assert code == 0, err
    user = int(tiny_frame.user_id.iloc[0])
    code, out, err = bseq("retrieve", tmp_path / "store", "--user", user, "--k", 5, "--json")
    assert code == 0, err
    found = json.loads(out)
    hits = pd.DataFrame(found["candidates"])
    assert found["version"] in bseq("publish", tiny_run, "--store", tmp_path / "store")[2] or found["version"]
    assert hits["rank"].tolist() == [1, 2, 3, 4, 5]
    assert hits.score.is_monotonic_decreasing
    assert set(hits.user_id) == {user}
    assert not set(hits.item_id) & set(tiny_frame.item_id[tiny_frame.user_id == user])
    table = bseq("retrieve", tmp_path / "store", "--user", user, "--k", 5)[1]
    assert all(str(item) in table for item in hits.item_id)


def test_a_new_item_is_published_with_the_events_that_it_has_by_now(bseq, tiny_frame, tmp_path):
    """Without the log its histories are those of the run, which did not know it."""
    items = pd.DataFrame({"item_id": [*np.arange(30) * 10 + 5, 999], "shelf": ["a", "b", "c"] * 10 + ["a"]})
    items.to_csv(tmp_path / "items.csv", index=False)
    tiny_frame.to_parquet(tmp_path / "log.parquet")
    settings = ["encoder=mean", "vectors.dim=8", "training.epochs=1", "training.batch.users=16", "split=none"]
    settings.append('items.encoders=[{name = "columns", categories = ["shelf"]}]')
    told = [word for setting in settings for word in ("--set", setting)]
    told += ["--items", tmp_path / "items.csv", "--out", tmp_path / "run"]
    assert bseq("train", tmp_path / "log.parquet", *told)[0] == 0
    user = int(tiny_frame.user_id.iloc[0])
    since = tiny_frame.iloc[-1:].assign(item_id=999, user_id=user)
    later = pd.concat([tiny_frame, since]).rename(columns={"user_id": "household"})
    later.to_parquet(tmp_path / "later.parquet")
    publish = ["publish", tmp_path / "run", "--store", tmp_path / "store"]
    for log, seen in (([], False), (["--log", tmp_path / "later.parquet", "--column", "user_id=household"], True)):
        code, _, err = bseq(*publish, "--items", tmp_path / "items.csv", *log)
        assert code == 0, err
        found = json.loads(bseq("retrieve", tmp_path / "store", "--user", user, "--k", 40, "--json")[1])["candidates"]
        assert (999 not in {hit["item_id"] for hit in found}) == seen  # what one has is not shown again
    code, _, err = bseq(*publish, "--log", tmp_path / "log.parquet")
    assert (code, "give items with it" in " ".join(err.split())) == (2, True)
    code, _, err = bseq(*publish, "--column", "user_id=household")
    assert (code, "belong to --log" in " ".join(err.split())) == (2, True)
    tiny_frame.iloc[:40].to_parquet(tmp_path / "old.parquet")
    tiny_frame.assign(user_id="raw-" + tiny_frame.user_id.astype(str)).to_parquet(tmp_path / "raw.parquet")
    before = sorted((tmp_path / "store").rglob("*"))
    for name, told in (("old", "ends before the newest event"), ("raw", "give the same key")):
        code, _, err = bseq(*publish, "--items", tmp_path / "items.csv", "--log", tmp_path / f"{name}.parquet")
        assert (code, told in " ".join(err.split())) == (2, True), err
    assert sorted((tmp_path / "store").rglob("*")) == before


def test_more_than_the_catalogue_gives_fewer_rows(bseq, tiny_store, tiny_frame):
    user = int(tiny_frame.user_id.iloc[0])
    seen = tiny_frame.item_id[tiny_frame.user_id == user].nunique()
    n_items = tiny_frame.item_id.nunique()
    for exclude, expected in (("seen", n_items - seen), ("none", n_items)):
        code, out, _ = bseq("retrieve", tiny_store, "--user", user, "--k", 100_000, "--exclude", exclude, "--json")
        hits = json.loads(out)["candidates"]
        assert (code, len(hits), len({hit["item_id"] for hit in hits})) == (0, expected, expected)


def test_unknown_items_of_a_query_are_counted(bseq, tiny_store):
    code, out, err = bseq("retrieve", tiny_store, "--items", "5, 999, 15,998", "--k", 3)
    assert code == 0, err
    assert "2 event(s) of items that the catalogue does not have" in err
    code, out, err = bseq("retrieve", tiny_store, "--items", "5,15", "--k", 3, "--json")
    assert (code, err, len(json.loads(out)["candidates"])) == (0, "", 3)
    code, out, _ = bseq(
        "retrieve", tiny_store, "--items", "999", "--k", 3, "--json"
    )  # nothing is known: what is popular
    assert (code, {hit["source"] for hit in json.loads(out)["candidates"]}) == (0, {"popular"})


def test_unknown_items_are_counted_beside_json_too(bseq, tiny_store):
    code, out, err = bseq("retrieve", tiny_store, "--items", "5,999", "--k", 3, "--json")
    assert (code, len(json.loads(out)["candidates"])) == (0, 3)
    assert "1 event(s) of items that the catalogue does not have" in err


def test_features_of_candidates(bseq, tiny_store, tiny_frame, tmp_path):
    pairs = tiny_frame[["user_id", "item_id"]].drop_duplicates().head(20)
    pairs.to_csv(tmp_path / "candidates.csv", index=False)
    at = (tiny_frame.timestamp.max() + pd.Timedelta(days=1)).isoformat()
    code, _, err = bseq(
        "features", tiny_store, "--candidates", tmp_path / "candidates.csv", "--at", at,
        "--out", tmp_path / "f.parquet", "--feast", tmp_path / "views.py",
    )  # fmt: skip
    assert code == 0, err
    table = pd.read_parquet(tmp_path / "f.parquet")
    assert len(table) == 20
    assert table[["user_id", "item_id"]].to_numpy().tolist() == pairs.to_numpy().tolist()
    assert table.select_dtypes("float32").shape[1] >= 5
    assert 'name="bseq_features"' in (tmp_path / "views.py").read_text()


def test_benchmark_of_a_sequence_file(bseq, tiny_frame, tmp_path, tiny_settings):
    users = tiny_frame.groupby("user_id").item_id.agg(list)
    (tmp_path / "log.txt").write_text("".join(f"{u} {' '.join(map(str, i))}\n" for u, i in users.items()))
    code, out, err = bseq(
        "benchmark",
        tmp_path / "log.txt",
        "--recipe",
        "reference",
        *tiny_settings,
        "--seeds",
        "0,1",
        "--blend",
        "--json",
        tmp_path / "b.json",
        "--where",
        "user_id >= 0",
    )
    assert code == 0, err
    assert f"read {len(tiny_frame)} rows, " not in err  # none is left out
    document = json.loads((tmp_path / "b.json").read_text())
    assert document["dataset"] == {"source": "log.txt", "users": 60, "items": 30, "events": len(tiny_frame)}
    assert [row["seed"] for row in document["seeds"]] == [0, 1]
    for metric, mean in document["mean"].items():
        assert mean == pytest.approx(np.mean([row[metric] for row in document["seeds"]]))
        assert document["blend_mean"][metric] == pytest.approx(np.mean([r["blend"][metric] for r in document["seeds"]]))
        for seed in document["seeds"]:
            for row in (seed, seed["blend"]):
                low, high = row["intervals"][metric]
                assert low <= row[metric] <= high
    assert {"popularity", "transition_graph"} <= set(document["baselines"])
    needed = {
        "recall@5",
        "ndcg@5",
        "recall@10",
        "ndcg@10",
        "epochs",
        "train_seconds",
        "seconds_per_epoch",
        "events_per_second",
        "peak_rss_mb",
    }
    assert needed <= set(document["seeds"][0])
    assert "\u2502 mean, blend" in out
    settings = [word for word in tiny_settings if word != "--set"]
    result = benchmark(str(tmp_path / "log.txt"), "reference", seeds=[0, 1], settings=settings, sources=["transitions"])
    timed = {"train_seconds", "seconds_per_epoch", "events_per_second", "peak_rss_mb"}
    again = json.loads(json.dumps(result.to_dict()))
    for one in (document, again):
        one["seeds"] = [{key: value for key, value in row.items() if key not in timed} for row in one["seeds"]]
    assert document == again


def test_benchmark_with_a_time_split_trains_again_up_to_the_test(bseq, tiny_source, tmp_path, tiny_settings):
    """The same steps by hand: stop on the validation, train on all before the test, rank with what is known then."""
    settings = [*tiny_settings, "--set", "split.horizon_days=14", "--recipe", "reference"]
    file = tmp_path / "b.json"
    code, _, err = bseq(
        "benchmark", tiny_source, *settings, "--protocol", "time", "--blend", "--seeds", "0,1", "--json", file
    )
    assert code == 0, err
    found = json.loads(file.read_text())
    assert (found["protocol"], found["resolved_recipe"]["split"]["kind"]) == ("time", "time")
    assert bseq("train", tiny_source, *settings, "--set", "split=time", "--out", tmp_path / "first")[0] == 0
    first = Run(tmp_path / "first")
    cut_us = instant_us(first.recipe.split.test_at)
    events = read_events(str(tiny_source))
    again = first.recipe.replace(split="none", training={"stop_after": first.info["best_epoch"]})
    model = InterestModel.from_run(train(events.before(cut_us), again, tmp_path / "second").path)
    log = Sequences.from_events(events, model.vocabulary)
    known = log.between(None, cut_us)
    baselines = fitted_rankers(default_baselines(known, cut_us), known, model.vocabulary.n_items)
    new = time_window(log, cut_us, 14.0).new_items_only()
    # the blend's weight is that of the first model on the validation, its scores are those of the second in a store
    early = instant_us(first.recipe.split.validation_at)
    before = first.sequences()
    validation = time_window(before, early, 14.0).new_items_only()
    held_out = HeldOut(validation, before.between(None, early), early, "mask")
    blend = search_blend(first.model(), held_out, 10, ["transitions"]).blend
    publish_model(model, known, tmp_path / "store", index="exact", blend=blend)
    rankers = {
        "model": interest_ranker(model),
        "blend": served_ranker(Retriever.open(tmp_path / "store"), first.recipe.split.test_at),
        **baselines,
    }
    wanted = compare(new, rankers, model.vocabulary.n_items, (5, 10), "mask")
    seed = found["seeds"][0]
    assert seed["blend"]["sources"] == blend.sources
    for metric in ("recall@5", "ndcg@10"):
        assert seed[metric] == pytest.approx(wanted.mean("model", metric), abs=1e-9)
        assert seed["blend"][metric] == pytest.approx(wanted.mean("blend", metric), abs=1e-9)
        for name in baselines:
            assert found["baselines"][name][metric] == pytest.approx(wanted.mean(name, metric), abs=1e-9)


def test_benchmark_refuses_an_empty_test_before_it_trains(bseq, tiny_source, tmp_path):
    late = ("--set", "split.test_at=2090-01-01T00:00:00Z")
    code, _, err = bseq("benchmark", tiny_source, "--protocol", "time", *late, "--recipe", "auto")
    assert code != 0
    assert "nobody has both" in err
    assert "epoch" not in err


def test_popularity_columns_are_read_at_the_cut(bseq, tiny_source, tmp_path):
    """As those of a model brought up to date by hand with the log before the test."""
    settings = ["--recipe", "auto", "--set", "split.horizon_days=10", "--set", "training.epochs=1"]
    run = tmp_path / "run"
    assert bseq("train", tiny_source, *settings, "--set", "split=time", "--out", run)[0] == 0
    assert bseq("evaluate", run, "--k", "10", "--json", tmp_path / "e.json")[0] == 0
    found = json.loads((tmp_path / "e.json").read_text())
    cut_us = instant_us(Run(run).recipe.split.test_at)
    log, model = Run(run).sequences(), InterestModel.from_run(run)
    counts = np.zeros((model.vocabulary.n_items + 1, 3), np.float32)
    for place, days in enumerate(model.recipe.objective.popularity_days):
        recent = log.between(int(cut_us - days * DAY_US), cut_us)
        pairs = set(zip(recent.user_index.tolist(), recent.items.tolist(), strict=True))
        for _, item in pairs:
            counts[item, place] += item > 0
    fresh = replace(model, item_priors_VP=torch.from_numpy(np.log1p(counts)))
    test = time_window(log, cut_us, 10.0).new_items_only()
    rankers = {"fresh": interest_ranker(fresh), "stale": interest_ranker(model)}
    wanted = compare(test, rankers, model.vocabulary.n_items, (10,), "mask")
    assert found["model"]["ndcg@10"] == pytest.approx(wanted.mean("fresh", "ndcg@10"), abs=1e-6)
    assert wanted.mean("fresh", "ndcg@10") != pytest.approx(wanted.mean("stale", "ndcg@10"), abs=1e-3)


def test_auto_knows_of_a_time_split(bseq, tiny_source, tmp_path):
    """Both commands hand the split on; what is set by hand comes last."""
    once = ["--set", "training.epochs=1", "--recipe", "auto"]
    by_hand = [*once, "--set", "split=time", "--set", "split.horizon_days=10"]
    run = tmp_path / "run"
    assert bseq("train", tiny_source, *by_hand, "--set", "encoder.dropout=0.3", "--out", run)[0] == 0
    recipe = Run(run).recipe
    assert (recipe.objective.kind, recipe.objective.popularity_days) == ("window", (2.5, 10.0, 130.0))
    assert (recipe.encoder.dropout, recipe.training.epochs) == (0.3, 1)
    horizon = ("--set", "split.horizon_days=10", "--protocol", "time")
    code, _, err = bseq("benchmark", tiny_source, *once, *horizon, "--json", tmp_path / "b.json")
    assert code == 0, err
    assert json.loads((tmp_path / "b.json").read_text())["resolved_recipe"]["objective"]["kind"] == "window"
    columns = ("--set", "objective.popularity_days=[5.0]")  # goes with windows, which auto chooses
    assert bseq("train", tiny_source, *by_hand, *columns, "--out", tmp_path / "columns")[0] == 0
    assert Run(tmp_path / "columns").recipe.objective.popularity_days == (5.0,)
    assert bseq("train", tiny_source, *once, "--out", tmp_path / "other")[0] == 0
    assert Run(tmp_path / "other").recipe.objective.kind == "next"


def test_plugins_recipes_and_doctor(bseq):
    code, out, _ = bseq("plugins")
    assert (code, "builtin" in out, "causal" in out) == (0, True, True)
    listed = json.loads(bseq("plugins", "--json")[1])
    assert {"causal", "mean"} <= set(next(p for p in listed if p["name"] == "builtin")["parts"]["encoder"])
    assert "reference" in bseq("recipes")[1]
    recipe = json.loads(bseq("recipes", "reference")[1])
    assert (recipe["encoder"]["max_length"], recipe["encoder"]["dropout"]) == (50, 0.2)
    assert (recipe["vectors"]["dim"], recipe["training"]["batch"]) == (64, {"users": 128})
    findings = json.loads(bseq("doctor", "--json", "--quick")[1])
    assert {"python", "torch", "torchrec", "faiss"} <= {finding["what"] for finding in findings}
    code = bseq("doctor", "--quick")[0]
    assert code == int(any(finding["state"] == "bad" for finding in findings))


OPTIMISED = """
import sys
from bseq_plugin.cli.main import main
assert False, "asserts are on"
for line in {lines!r}:
    sys.argv = ["bseq", *line]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


def test_it_all_works_without_asserts(python, tiny_source, tiny_settings, tmp_path):
    """``python -O`` strips asserts: none of ours may matter, nor those of the libraries we call."""
    run, store = str(tmp_path / "run"), str(tmp_path / "store")
    lines = [
        ["train", str(tiny_source), "--out", run, *tiny_settings],
        ["publish", run, "--store", store, "--index", "faiss_cpu"],
        ["retrieve", store, "--items", "5,15", "--k", "4", "--json"],
    ]
    done = python("-O", "-c", OPTIMISED.format(lines=lines))
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["candidates"]) == 4
    wrong = python("-O", "-m", "bseq_plugin.cli.main", "retrieve", store, "--items", "5", "--k", "0")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: --k 0")


def test_the_installed_command_and_the_module_are_the_same(python):
    assert python("-m", "bseq_plugin.cli.main", "--version").stdout.strip() == f"bseq {__version__}"


def test_candidates_may_carry_their_own_instants(bseq, tiny_store, tiny_frame, tmp_path):
    """``--at`` is for all rows; without it each row's column ``at`` counts."""
    later = [tiny_frame.timestamp.max() + pd.Timedelta(days=days) for days in (1, 2)]
    pairs = tiny_frame[["user_id", "item_id"]].drop_duplicates().head(2).assign(at=[time.isoformat() for time in later])
    pairs.to_csv(tmp_path / "candidates.csv", index=False)
    out = tmp_path / "features.parquet"
    code, _, err = bseq("features", tiny_store, "--candidates", tmp_path / "candidates.csv", "--out", out)
    assert code == 0, err
    assert pd.read_parquet(out).event_timestamp.tolist() == later


def test_a_recipe_file_may_write_times_as_toml_has_them(tmp_path):
    from bseq_plugin import Recipe

    (tmp_path / "recipe.toml").write_text('[split]\nkind = "time"\nvalidation_at = 2024-02-01T00:00:00Z\n')
    assert Recipe.load(tmp_path / "recipe.toml").split.validation_at == "2024-02-01T00:00:00+00:00"


def test_pseudonyms_from_the_command_line(bseq, tiny_source, tiny_settings, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef\n")
    run, store = tmp_path / "run", tmp_path / "store"
    code, _, err = bseq("train", tiny_source, "--out", run, *tiny_settings, "--pseudonymise", key)
    assert code == 0, err
    assert bseq("publish", run, "--store", store, "--index", "exact")[0] == 0
    user = int(pd.read_parquet(tiny_source).user_id[0])
    code, printed, err = bseq("retrieve", store, "--user", user, "--k", 3, "--json", "--pseudonymise", key)
    assert code == 0, err
    assert len(json.loads(printed)["candidates"]) == 3
    code, _, err = bseq("retrieve", store, "--user", user, "--k", 3)
    assert code == 2
    assert "not in this store" in err
    assert bseq("train", tmp_path, "--out", tmp_path / "other", "--pseudonymise", key)[0] == 2
