"""Item texts tuned on behaviour: the loss by hand, what learns, killed and resumed, what is written."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from bseq_transformers import item_tuning, text_tower
from bseq_transformers.backbone import open_backbone
from bseq_transformers.item_tuning import ItemTextTuner, ItemTuningOptions, Pairs, learned_from
from bseq_transformers.text import TextItemEncoder, TextOptions
from bseq_transformers.tuned_model import CHECKPOINT, PROJECTION, TOLD, check_folder
from safetensors.torch import load_file

import bseq_plugin as bseq

NAMES = ["lip balm", "nail polish red", "", "milk", "bread", "fresh milk", "nail polish blue", "lip balm"]
ITEMS = pd.DataFrame({"item_id": np.arange(10, 18), "name": NAMES, "brand": ["red", *[None] * 7]})
VOCABULARY = bseq.Vocabulary(np.arange(10, 18), np.arange(8) + 1)
ROWS = np.array([[1, 2, 3], [4, 5, 6]])


def interest_model(similarity="inner", **sections):
    torch.manual_seed(0)
    recipe = bseq.Recipe(
        encoder={"name": "mean", "max_length": 5},
        vectors={"dim": 6, "similarity": similarity},
        events={"features": ()},
        **sections,
    )
    encoder = bseq.SequenceInterestEncoder(recipe, VOCABULARY.n_items)
    state = {name: value + torch.randn(value.shape) for name, value in encoder.state_dict().items()}
    priors = torch.rand(9, len(recipe.popularity_days)) if recipe.popularity_days else None
    return bseq.InterestModel.from_state(recipe, VOCABULARY, state, priors, None)


@pytest.fixture
def tuner(tiny_model):
    """A function: a tuner on the tiny Transformer with these options."""

    def build(model=None, **options):
        given = {"columns": ("name",), "model": str(tiny_model), "dtype": "float32", "batch": 4, "steps": 6, **options}
        return ItemTextTuner(model or interest_model(), ITEMS, ItemTuningOptions(**given))

    return build


@pytest.fixture(scope="module")
def pairs():
    random = np.random.default_rng(0)
    rows = np.array([1, 2, 4, 5, 6, 7, 8] * 3)
    return Pairs(torch.from_numpy(random.normal(size=(21, 1, 6))).float(), rows)


def learning(tuner):
    return {name: value.detach().clone() for name, value in tuner.tower.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(
    ("score", "settings"),
    [
        ("inner", {}),
        ("cosine", {"objective": {"kind": "window", "popularity_days": [7.0, 28.0]}}),
        ("inner", {"objective": "prefix", "interests": {"kind": "several", "n": 2}}),
    ],
)
def test_the_loss_pair_by_pair(tuner, score, settings):
    model = interest_model(score, **settings)
    one, random = tuner(model), np.random.default_rng(1)
    interests = torch.randn(5, model.recipe.interests_per_user, model.recipe.interest_dim)
    pairs = Pairs(interests, np.array([4, 2, 4, 8, 1]))
    log_share = torch.from_numpy(random.normal(size=9)).float()
    one.tower.scale.data.fill_(0.3)
    places = np.array([0, 1, 2, 4])
    found = one.loss(pairs, places, log_share)
    losses = []
    for place in places:
        scores = {}
        for item in (1, 2, 4):  # of the batch
            row = one.tower([NAMES[item - 1]])[0].detach()
            row = row / row.norm() if score == "cosine" else row
            row = row if model.item_priors_VP is None else torch.cat([row, model.item_priors_VP[item]])
            best = max(float(interest @ row) for interest in interests[place])
            scores[item] = best * np.exp(0.3) - float(log_share[item])
        total = np.log(sum(np.exp(value) for value in scores.values()))
        losses.append(total - scores[int(pairs.items_N[place])])
    assert float(found.detach()) == pytest.approx(np.mean(losses), rel=1e-4)


def test_gradient_goes_through_the_texts_of_the_batch_alone(tuner, pairs, tiny_model, monkeypatch):
    one = tuner(method="full")
    read = []
    real = item_tuning.TextTower.vectors
    monkeypatch.setattr(
        item_tuning.TextTower, "vectors", lambda self, texts: read.append(list(texts)) or real(self, texts)
    )
    places = np.flatnonzero(np.isin(pairs.items_N, [1, 4]))
    one.loss(pairs, places, torch.zeros(9)).backward()
    assert read == [["lip balm", "milk"]]
    grad = one.tower.model.get_input_embeddings().weight.grad
    ids = open_backbone(str(tiny_model)).tokenizer()(["lip balm", "milk"])["input_ids"]
    assert grad.any(1).nonzero()[:, 0].tolist() == sorted({token for text in ids for token in text})


@pytest.mark.parametrize("method", ["lora", "last_layer", "full", "frozen"])
def test_only_what_the_method_trains_changes(tuner, pairs, tmp_path, method):
    one = tuner(method=method)
    before = {name: value.detach().clone() for name, value in one.tower.named_parameters()}
    wanted = set(learning(one))
    of_model = {name for name in wanted if name.startswith("model.")}
    if method == "lora":
        assert of_model
        assert all("lora_" in name for name in of_model)
    elif method == "last_layer":
        assert of_model
        assert all("layer.1." in name for name in of_model)
    one.fit(pairs, tmp_path / "tuned")
    changed = {name for name, value in one.tower.named_parameters() if not torch.equal(value, before[name])}
    unused = {name for name in of_model if "pooler" in name}  # full: it is there, nobody reads it
    assert changed - unused == wanted - unused
    learn, of = one.trained
    assert learn == sum(before[name].numel() for name in of_model)
    assert of == sum(value.numel() for name, value in before.items() if name.startswith("model."))


def test_the_projection_begins_as_ridge_regression(tuner):
    model = interest_model()
    one = tuner(model)
    known = [place for place in range(1, 9) if NAMES[place - 1]]
    with torch.no_grad():
        x = torch.cat([one.tower.vectors([NAMES[place - 1]]) for place in known]).double().numpy()
    y = model.item_table_VD[known].double().numpy()
    xc, yc = x - x.mean(0), y - y.mean(0)
    weight, bias = one.tower.projection.weight.detach().numpy(), one.tower.projection.bias.detach().numpy()
    penalty = text_tower.RIDGE * np.mean(np.diag(xc.T @ xc))
    gradient = xc.T @ (xc @ weight.T - yc) + penalty * weight.T  # zero at the minimum
    assert np.abs(gradient).max() < 1e-4 * np.abs(xc.T @ yc).max()
    np.testing.assert_allclose(x.mean(0) @ weight.T + bias, y.mean(0), atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "last_layer"])
def test_the_written_model_says_what_the_tuner_says(tuner, pairs, tmp_path, method):
    one = tuner(method=method, learning_rate=0.05)
    one.fit(pairs, tmp_path / "tuned")
    texts = [name for name in NAMES if name]
    with torch.no_grad():
        wanted = torch.cat([one.tower.vectors([text]) for text in texts])
        rows = one.tower(texts)
    encoder = TextItemEncoder(TextOptions(columns=("name",), model=str(tmp_path / "tuned"), dtype="float32"))
    table = pd.DataFrame({"item_id": range(len(texts)), "name": texts})
    found = encoder.encode(table)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    projection = load_file(tmp_path / "tuned" / PROJECTION)
    np.testing.assert_allclose(found @ projection["weight"].T.numpy() + projection["bias"].numpy(), rows, atol=1e-4)
    projected = encoder.options.model_copy(update={"projected": True, "max_tokens": 32})
    as_rows = TextItemEncoder(projected)
    empty = pd.DataFrame({"item_id": [99], "name": [" "]})
    np.testing.assert_allclose(as_rows.encode(pd.concat([table, empty])), [*rows.numpy(), np.zeros(6)], atol=1e-4)
    assert (as_rows.width, as_rows.identity != encoder.identity) == (6, True)
    with pytest.raises(bseq.UsageError, match="has no projection.safetensors; tune it"):
        TextItemEncoder(projected.model_copy(update={"model": one.options.model})).encode(table)
    before = TextItemEncoder(TextOptions(columns=("name",), model=one.options.model, dtype="float32"))
    assert before.identity != encoder.identity
    assert np.abs(before.encode(table) - found).max() > 1e-3
    assert not list((tmp_path / "tuned").rglob("*.bin"))
    told = json.loads((tmp_path / "tuned" / "tuning.json").read_text())
    assert (told["options"]["method"], told["backbone"]) == (method, one.tower.checksum)


def test_adapters_on_the_old_weights_are_the_merged_model(tuner, pairs, tiny_model, tmp_path):
    from peft import PeftModel

    tuner(learning_rate=0.05).fit(pairs, tmp_path / "tuned")
    old, merged = open_backbone(str(tiny_model)), open_backbone(str(tmp_path / "tuned"))
    tokens = old.tokenizer()(["nail polish red"], return_tensors="pt")
    with torch.no_grad():
        added = PeftModel.from_pretrained(old.model(), tmp_path / "tuned" / "adapters").eval()
        states = [model(**tokens).last_hidden_state for model in (added, merged.model(), old.model())]
    np.testing.assert_allclose(states[0], states[1], atol=1e-5)
    assert (states[1] - states[2]).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["lora", "full"])
def test_killed_and_gone_on_with_is_the_same_to_the_bit(tuner, pairs, tmp_path, monkeypatch, method):
    options = {"steps": 9, "checkpoint_steps": 2, "method": method}
    losses = tuner(**options).fit(pairs, tmp_path / "whole")
    real, seen = ItemTextTuner.loss, []

    def killed(self, *given):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(real(self, *given))
        return seen[-1]

    monkeypatch.setattr(ItemTextTuner, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        tuner(**options).fit(pairs, tmp_path / "parts")
    monkeypatch.setattr(ItemTextTuner, "loss", real)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [CHECKPOINT]
    with pytest.raises(bseq.UsageError, match="was begun with another run, other items or other options"):
        tuner(**options, seed=1).fit(pairs, tmp_path / "parts")
    assert tuner(**options).fit(pairs, tmp_path / "parts") == losses[4:]
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "parts") for p in (tmp_path / "parts").rglob("*") if p.is_file())
    for file in (name for name in files if name.suffix == ".safetensors"):
        one, other = (load_file(tmp_path / folder / file) for folder in ("whole", "parts"))
        assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(bseq.UsageError, match="exists and has no unfinished tuning in it"):
        tuner(**options).fit(pairs, tmp_path / "whole")


def test_a_damaged_checkpoint_is_named(tuner, pairs, tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / CHECKPOINT).write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(bseq.UsageError, match="checkpoint.safetensors' is damaged"):
        tuner().fit(pairs, tmp_path / "tuned")
    (tmp_path / "tuned" / CHECKPOINT).write_bytes(b"\x80\x04")  # a pickle is no safetensors file
    with pytest.raises(bseq.UsageError, match="checkpoint.safetensors' is damaged"):
        tuner().fit(pairs, tmp_path / "tuned")


def test_texts_come_to_where_their_users_are(tuner, tmp_path):
    """Users of two tastes that random weights can't tell; after tuning each finds its own kind."""
    taste = torch.eye(6)[:2] * 3
    rows = np.array([1, 2, 7, 8] * 20 + [4, 5, 6, 4] * 20)
    pairs = Pairs(taste[np.repeat([0, 1], 80)][:, None], rows)
    one = tuner(method="full", steps=80, batch=16, learning_rate=5e-3, projection_learning_rate=5e-3)
    losses = one.fit(pairs, tmp_path / "tuned")
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:5])
    with torch.no_grad():
        scores = taste @ one.tower([name for name in NAMES if name]).T
    own = torch.tensor([True, True, False, False, False, True, True])
    assert scores[0][own].min() > scores[0][~own].max()
    assert scores[1][~own].min() > scores[1][own].max()


def test_pairs_are_events_asked_of_what_came_before():
    model = interest_model()
    items = np.array([3, 1, 0, 2, 4, 5, 0])
    histories = bseq.Sequences(np.array([1, 2, 3, 4]), np.array([0, 4, 4, 5, 7]), items)
    found = Pairs.of(model, histories, per_user=2)
    assert found.items_N.tolist() == [2]  # the other of the two is unknown; who has one event is asked of nothing
    np.testing.assert_allclose(
        found.interests_NKD, model.encode(bseq.Sequences(np.array([1]), np.array([0, 3]), items[:3])), atol=1e-6
    )
    assert sorted(Pairs.of(model, histories, per_user=9).items_N.tolist()) == [1, 2]
    with pytest.raises(bseq.UsageError, match="no history has a known item after another event"):
        Pairs.of(model, histories.take(np.array([1, 2])))


def test_nothing_to_learn_from(tuner, pairs, tmp_path):
    unread = Pairs(pairs.interests_NKD[:2], np.array([3, 3]))
    with pytest.raises(bseq.UsageError, match="0 pairs have an item with a text"):
        tuner().fit(unread, tmp_path / "tuned")
    for other in (ITEMS.assign(item_id=ITEMS["item_id"] + 100), ITEMS.assign(name="")):
        with pytest.raises(bseq.UsageError, match=r"no item of the model has a text in \['name'\]"):
            ItemTextTuner(interest_model(), other, ItemTuningOptions(columns=("name",), model=tuner().options.model))
    assert not (tmp_path / "tuned").exists()


def test_a_loss_that_is_not_finite_is_told(tuner, pairs, tmp_path):
    spoiled = Pairs(pairs.interests_NKD * torch.inf, pairs.items_N)
    with pytest.raises(bseq.BseqError, match="the loss is nan"):
        tuner().fit(spoiled, tmp_path / "tuned")


@pytest.mark.parametrize(
    ("items", "told"),
    [
        (ITEMS.drop(columns="item_id"), "lacks column 'item_id'"),
        (ITEMS.drop(columns="name"), "lacks column 'name'"),
        (pd.concat([ITEMS, ITEMS[:1]]), "has item 10 twice"),
    ],
)
def test_an_items_table_that_is_none(tiny_model, items, told):
    with pytest.raises(bseq.SchemaError, match=told):
        ItemTextTuner(interest_model(), items, ItemTuningOptions(columns=("name",), model=str(tiny_model)))


@pytest.mark.parametrize("per_user", [0, -1])
def test_no_event_of_a_user(per_user):
    histories = bseq.Sequences(np.array([1]), np.array([0, 3]), np.array([3, 1, 2]))
    with pytest.raises(bseq.UsageError, match=f"per_user = {per_user}; give 1 or more"):
        Pairs.of(interest_model(), histories, per_user)


def test_folders_for_a_tuning(tmp_path):
    for name in ("empty", "full", "begun"):
        (tmp_path / name).mkdir()
    for name in ("file", "full/other", f"begun/{CHECKPOINT}"):
        (tmp_path / name).write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    for allowed in ("empty", "begun", "new", "new/below"):
        check_folder(tmp_path / allowed)
    for refused in ("file", "full"):
        with pytest.raises(bseq.UsageError, match="exists and has no unfinished tuning"):
            check_folder(tmp_path / refused)
    for below in ("file/tuned", "file/new/tuned"):
        with pytest.raises(bseq.UsageError, match=r"tuned' can't be written: '.*file' is no folder"):
            check_folder(tmp_path / below)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_projection_is_for_vectors_as_it_was_learned_on(tuner, pairs, tmp_path, pooling):
    folder = tmp_path / "tuned"
    one = tuner(method="frozen", steps=1, pooling=pooling, max_tokens=4)
    one.fit(pairs, folder)
    table = pd.DataFrame({"item_id": [1, 2], "name": ["lip balm", "nail polish red of the blue milk"]})

    def rows(**options):
        given = {"pooling": pooling, "max_tokens": 4, "dtype": "float32", "model": str(folder), **options}
        return TextItemEncoder(TextOptions(columns=("name",), projected=True, **given)).encode(table)

    with torch.no_grad():
        wanted = one.tower(table["name"].tolist()).numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="max_tokens = 4, and")
        np.testing.assert_allclose(rows(), wanted, atol=1e-4)
    other = "cls" if pooling == "mean" else "mean"
    with pytest.raises(bseq.UsageError, match=f"pooling = '{other}', and .* learned with '{pooling}'; set pooling"):
        rows(pooling=other)
    with pytest.raises(bseq.UsageError, match="normalize = False with projected = True"):
        rows(normalize=False)
    with pytest.warns(UserWarning, match=r"max_tokens = 9, and .* learned with 4; .* set max_tokens = 4"):
        longer = rows(max_tokens=9)
    np.testing.assert_allclose(longer[0], wanted[0], atol=1e-4)
    assert np.abs(longer[1] - wanted[1]).max() > 1e-3


@pytest.mark.parametrize("spoiled", [None, "{", "[]", '{"options": {"pooling": "mean"}}'])
def test_a_projection_that_nothing_is_told_of(tuner, pairs, tmp_path, spoiled):
    folder = tmp_path / "tuned"
    tuner(method="frozen", steps=1).fit(pairs, folder)
    (folder / TOLD).unlink() if spoiled is None else (folder / TOLD).write_text(spoiled)
    with pytest.raises(bseq.UsageError, match=r"tuning.json', which says .*, can't be read .* tune anew"):
        _ = TextItemEncoder(TextOptions(columns=("name",), projected=True, model=str(folder))).width


def test_the_command_tells_bad_input_in_a_line(command, tmp_path, monkeypatch):
    monkeypatch.setattr(item_tuning, "learned_from", lambda run: pytest.fail("the work has begun"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").write_text("kept")

    def refused(*arguments):
        code, _, err = command(*arguments)
        return code, " ".join(err.split())

    given = ["tune-text", tmp_path / "run", "--items", tmp_path / "items.csv", "--column", "name", "--out"]
    for out, told in (("full", "has no unfinished tuning"), ("full/other/tuned", "is no folder one may write to")):
        code, said = refused(*given, tmp_path / out)
        assert (code, said[:6], told in said) == (2, "error:", True), said
    code, said = refused(*given, tmp_path / "new", "--per-user", "0")
    assert (code, "--per-user" in said) == (2, True)
    code, said = refused(*given, tmp_path / "new", "--steps", "0")
    assert (code, said[:6], "steps = 0" in said) == (2, "error:", True)


def test_by_command_from_a_run(command, tiny_model, tmp_path):
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"user_id": np.repeat(np.arange(20), 6), "item_id": random.integers(10, 18, 120)})
    frame["timestamp"] = pd.to_datetime(1_600_000_000 + np.arange(120) * 3600, unit="s", utc=True)
    recipe = bseq.Recipe(
        encoder="mean", vectors={"dim": 8}, split="leave_one_out", training={"epochs": 1, "batch": {"users": 8}}
    )
    run = bseq.train(bseq.Events.from_frame(frame), recipe, tmp_path / "run", progress=False)
    model, histories = learned_from(run.path)
    whole = bseq.Sequences.load(run.path / "sequences.parquet", model.vocabulary)
    assert np.array_equal(histories.items, whole.without_last(2).items)
    ITEMS.to_parquet(tmp_path / "items.parquet")
    told = ["tune-text", run.path, "--items", tmp_path / "items.parquet", "--out", tmp_path / "tuned"]
    settings = ["--column", "name", "--column", "brand", "--model", tiny_model, "--steps", "3", "--batch", "8"]
    code, _, err = command(*told, *settings)
    assert code == 0, err
    assert "parameters of the Transformer learn" in err
    assert open_backbone(str(tmp_path / "tuned")).width == 16
    with pytest.raises(bseq.RunError, match="is not a finished run"):
        learned_from(tmp_path)
