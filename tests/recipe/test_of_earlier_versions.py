"""What bseq 0.1 wrote is refused in one line, by every command and verb that reads it. Its recipe had no sections."""

import json
import shutil

import pytest
from store_files import reseal

from bseq_plugin import Events, InterestModel, Recipe, Retriever, Run, RunError, StoreError, evaluate, publish, train
from bseq_plugin.store.store import Store

SAID = "was written by bseq 0.1"
REMEDY = "train and publish again"
# As a run of 0.1 had it: every setting beside every other one.
FLAT = {
    "encoder": "causal", "encoder_options": {"n_blocks": 1, "n_heads": 2, "feed_forward": 16}, "dim": 8, "members": 1,
    "max_length": 10, "dropout": 0.2, "event_features": ["event_type", "time_gap"], "time_zone": "UTC",
    "session_gap_minutes": 30.0, "item_attributes": [], "item_encoders": [], "item_encoder_options": {},
    "targets": "next", "window_days": 28.0, "readout": "last", "n_interests": 4, "loss": "softmax", "loss_options": {},
    "score": "inner", "temperature": 0.1, "candidates": "all", "sampling": "uniform", "split": "leave-one-out",
    "horizon_days": 28.0, "validation_at": None, "test_at": None, "min_item_count": 1, "mask_seen": True,
    "validation_metric": "ndcg@10", "epochs": 2, "patience": 5, "batch_users": 16, "batch_events": None, "seed": 0,
    "learning_rate": 1e-3, "table_learning_rate": 0.05, "table_optimizer": "rowwise_adagrad", "sharding": "auto",
}  # fmt: skip


@pytest.fixture
def old_run(tiny_run, tmp_path):
    """The tiny run, with the recipe as 0.1 wrote it, both in the run and in its model."""
    shutil.copytree(tiny_run, tmp_path / "run")
    for file in (tmp_path / "run" / "recipe.json", tmp_path / "run" / "model" / "recipe.json"):
        document = json.loads(file.read_text())
        file.write_text(json.dumps({**document, "recipe": FLAT} if "recipe" in document else FLAT))
    return tmp_path / "run"


@pytest.fixture
def old_store(tiny_store, tmp_path):
    """The tiny store, whose one version has the recipe as 0.1 wrote it, with all checksums right."""
    shutil.copytree(tiny_store, tmp_path / "store")
    store = Store(tmp_path / "store")

    def flat(folder, manifest):
        header = json.loads((folder / "recipe.json").read_text())
        (folder / "recipe.json").write_text(json.dumps({**header, "recipe": FLAT}))

    reseal(store, store.versions()[-1], flat)
    return store.path


def test_the_recipe_alone(tmp_path):
    for values in (FLAT, {}, {"encoder": "mean"}):
        with pytest.raises(RunError, match=f"{SAID}.*{REMEDY}"):
            Recipe.stored(values, tmp_path)
    assert Recipe.stored(Recipe().as_dict(), tmp_path) == Recipe()


def test_every_verb_refuses_a_run(old_run, tiny_frame, tiny_recipe, tiny_run, tmp_path):
    events, new = Events.from_frame(tiny_frame), tmp_path / "new"
    for verb in (
        lambda: Run(old_run).recipe,
        lambda: InterestModel.from_run(old_run),
        lambda: evaluate(old_run),
        lambda: publish(old_run, new),
        lambda: train(events, tiny_recipe, old_run, resume=True, progress=False),
        lambda: train(events, tiny_recipe, new, warm_start=old_run, progress=False),
    ):
        with pytest.raises(RunError, match=f"{SAID}.*{REMEDY}") as caught:
            verb()
        assert "\n" not in str(caught.value)
    assert not new.exists()


def test_a_store_is_not_opened(old_store):
    with pytest.raises(StoreError, match=SAID):
        Retriever.open(old_store)


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "RUN"),
        ("publish", "RUN", "--store", "NEW"),
        ("fit-blend", "RUN"),
        ("train", "LOG", "--out", "RUN", "--resume"),
        ("train", "LOG", "--out", "NEW", "--warm-start", "RUN"),
        ("retrieve", "STORE", "--user", "1"),
        ("retrieve", "STORE", "--items", "5"),
        ("store", "delta", "STORE", "--removed", "GONE"),
        ("index", "report", "STORE"),
        ("features", "STORE", "--candidates", "GONE", "--at", "2021-01-01T00:00:00Z", "--out", "NEW"),
    ],
)
def test_every_command_says_so_in_one_line(bseq, old_run, old_store, tiny_source, tiny_settings, tmp_path, command):
    (tmp_path / "gone.csv").write_text("user_id,item_id\n1,5\n")
    paths = {"RUN": old_run, "STORE": old_store, "LOG": tiny_source, "NEW": tmp_path / "new"}
    words = [{**paths, "GONE": tmp_path / "gone.csv"}.get(word, word) for word in command]
    code, out, err = bseq(*words, *(tiny_settings if command[0] == "train" else ()))
    assert (code, out) == (1, ""), err
    assert len([line for line in err.strip().splitlines() if not line.startswith("read ")]) == 1, err
    assert SAID in err
    assert REMEDY in err
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()
