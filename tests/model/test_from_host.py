"""A host model becomes a model, a run, a store: towers as numbers, scores compared, what can't be served refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_hosts import (
    DIM,
    IDS,
    LENGTH,
    N_ITEMS,
    WIDTH,
    Scoring,
    TwoTower,
    batch,
    make_histories,
    make_vocabulary,
    queries,
    recipe,
    trained,
)
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.modules.mlp import MLP

import bseq_plugin as bseq
from bseq_plugin.model.from_host import model_of_host


@pytest.fixture(scope="module")
def vocabulary():
    return make_vocabulary()


@pytest.fixture(scope="module")
def histories():
    return make_histories()


HOSTS = {
    "its own rows": lambda: Scoring(),
    "cosine": lambda: Scoring(recipe(vectors={"dim": DIM, "similarity": "cosine"})),
    "several interests": lambda: Scoring(recipe(interests={"kind": "several", "n": 3}, objective="prefix")),
    "a linear tower": lambda: TwoTower(nn.Linear(DIM, WIDTH)),
    "torchrec's tower": lambda: TwoTower(MLP(DIM, [9, WIDTH], activation="sigmoid")),
    "layers": lambda: TwoTower(queries()),
    "a cosine tower": lambda: TwoTower(nn.Sequential(nn.Linear(DIM, WIDTH), nn.Tanh(), bseq.Normalize())),
    "several interests in one query": lambda: TwoTower(
        queries(n_inputs=3 * DIM), recipe(interests={"kind": "several", "n": 3}, objective="prefix")
    ),
}


@pytest.fixture(scope="module", params=HOSTS)
def host(request):
    torch.manual_seed(1)
    return trained(HOSTS[request.param](), 40)


def scores_of(host, sequences):
    """By the host's own forward: [B, V]."""
    cut, host = sequences.latest(LENGTH), host.eval()
    history = bseq.history_features(cut, recipe())
    rows = torch.arange(1, N_ITEMS + 1)
    with torch.no_grad():
        if isinstance(host, TwoTower):
            return host.query(history) @ host.items(rows).T
        padded = KeyedJaggedTensor(
            ["event", "target"],
            torch.cat([history["event"].values(), rows]),
            lengths=torch.cat([history["event"].lengths(), torch.tensor([N_ITEMS] + [0] * (cut.n_users - 1))]),
        )
        interest, items = host.interest.interest_and_items(padded)
        return torch.einsum("bkd,nd->bkn", interest["user_interest"].view(cut.n_users, -1, DIM), items["target"]).amax(
            1
        )


def test_the_store_answers_with_the_hosts_scores(host, vocabulary, histories, tmp_path):
    """From the store's own files, through the retriever; and after it was read back and cut to some of its items."""
    wanted = scores_of(host, histories)
    bseq.publish(host, tmp_path, histories=histories, vocabulary=vocabulary, trained_until="2026-02-01T00:00Z")
    hits = bseq.Retriever.open(tmp_path).retrieve(histories.user_ids, k=N_ITEMS, exclude="none")
    got = torch.full_like(wanted, float("nan"))
    got[hits["user_id"].to_numpy(), (hits["item_id"].to_numpy() - 3) // 10] = torch.tensor(hits["score"].to_numpy())
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_user_without_events_has_popular_items(vocabulary, histories, tmp_path):
    """Whatever the host's tower makes of an empty history."""
    counted = replace(vocabulary, item_counts=np.arange(N_ITEMS))
    both = bseq.Sequences(
        np.append(histories.user_ids, 99), np.append(histories.offsets, histories.n_events), histories.items
    )
    bseq.publish(trained(TwoTower(queries()), 2), tmp_path, histories=both, vocabulary=counted)
    hits = bseq.Retriever.open(tmp_path).retrieve([99], k=3)
    assert hits["item_id"].tolist() == IDS[[29, 28, 27]].tolist()
    assert set(hits["source"]) == {"popular"}


def test_a_model_with_towers_is_read_back(host, vocabulary, histories, tmp_path):
    model = model_of_host(host, vocabulary, histories)
    model.save(tmp_path)
    again = bseq.InterestModel.load(tmp_path)
    assert again.digest == model.digest
    assert torch.equal(again.encode(histories), model.encode(histories))
    some = again.with_items(np.array([4, 9]))
    assert torch.equal(some.item_vectors_VD[1:], model.item_vectors_VD[[5, 10]])
    torch.testing.assert_close(model.encode(histories, wide=True), model.encode(histories))
    if model.towers is not None:
        model.towers.query.layers[0].weight.data[0, 0] += 1
        del model.__dict__["digest"]
        assert again.digest != model.digest
        with pytest.raises(bseq.UsageError, match="publish the host again"):
            model.with_rows(IDS[:1], torch.zeros(1, DIM))


def test_the_hosts_own_mode_and_training_are_as_before(vocabulary, histories):
    host = trained(TwoTower(queries()), 5)
    before = {name: value.clone() for name, value in host.state_dict().items()}
    model_of_host(host, vocabulary, histories)
    assert host.training
    assert host.interest.training
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())


def test_a_tower_that_is_not_what_the_host_scores_with_is_refused(vocabulary, histories, tmp_path):
    host = trained(TwoTower(queries()), 5)

    def twice():
        return bseq.Towers(host, host.interest, host.query_proj, lambda history: 1.01 * host.query(history), host.items)

    host.export_towers = twice
    with pytest.raises(
        bseq.RunError, match=r"scores of 1200 sampled .* differ by up to 0\.\d+, the largest score being"
    ):
        bseq.publish(host, tmp_path, histories=histories, vocabulary=vocabulary)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("largest", [1e-3, 1e-20, 1e6])
def test_scores_of_any_size_are_compared(largest, vocabulary, histories, tmp_path):
    """Ten times the tolerance is seen, rounding is not."""
    host = trained(TwoTower(queries()), 5)
    with torch.no_grad():
        host.items.weight *= largest / scores_of(host, histories).abs().max()
    model_of_host(host, vocabulary, histories)
    louder = replace(host.export_towers(), query=lambda history: host.query(history) * (1 + 1e-4))
    with pytest.raises(bseq.RunError, match="differ by up to"):
        model_of_host(louder, vocabulary, histories)


def test_nan_is_refused(vocabulary, histories, tmp_path):
    host = trained(TwoTower(queries()), 5)
    host.items.weight.data[3] = float("nan")
    with pytest.raises(bseq.RunError, match="differ by up to nan"):
        bseq.publish(host, tmp_path, histories=histories, vocabulary=vocabulary)


class NoTowers(nn.Module):
    def __init__(self, n=1):
        super().__init__()
        self.encoders = nn.ModuleList(bseq.SequenceInterestEncoder(recipe(), N_ITEMS) for _ in range(n))


POPULARITY = recipe(objective={"kind": "window", "popularity_days": [7.0]})
REFUSED = {
    "no loss asked for its rows": (lambda: NoTowers(), "no loss has asked for table 'item' of encoders.0"),
    "no encoder": (lambda: nn.Linear(2, 2), "Linear has 0 of what can be published"),
    "two encoders": (lambda: NoTowers(2), r"has 2 of what can be published \(\['encoders.0', 'encoders.1'\]\)"),
    "never trained": (lambda: Scoring(), "neither trained nor loaded"),
    "a tower of other layers": (
        lambda: trained(TwoTower(nn.Sequential(nn.Linear(DIM, WIDTH), nn.Softmax(-1))), 2),
        "the query tower has a Softmax, which a store can't hold",
    ),
    "popularity columns": (lambda: trained(Scoring(POPULARITY), 0), "objective.popularity_days is for bseq.train"),
    "popularity columns behind a tower": (
        lambda: trained(TwoTower(nn.Linear(DIM + 1, WIDTH), POPULARITY), 1),
        r"objective.popularity_days is for bseq.train.*recipe.replace\(objective=\{'popularity_days': \(\)\}\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_served_is_refused_by_name(name, vocabulary, histories, tmp_path):
    made, said = REFUSED[name]
    with pytest.raises(bseq.UsageError, match=said):
        bseq.publish(made(), tmp_path, histories=histories, vocabulary=vocabulary)
    assert not list(tmp_path.iterdir())


def test_a_loss_over_popularity_columns_is_refused_and_its_remedy_works():
    with pytest.raises(bseq.UsageError, match="leave it out of the recipe of a host's encoder: recipe.replace"):
        Scoring(POPULARITY)(batch(0))
    assert torch.isfinite(Scoring(POPULARITY.replace(objective={"popularity_days": ()}))(batch(0)))


@pytest.mark.parametrize("sampled", [False, True])
def test_a_batch_without_popularity_columns_is_refused(sampled):
    rows, data = torch.arange(1, N_ITEMS + 1), batch(0, 8)
    columns = {"event": data["event"], "target": data["target"]}
    features = KeyedJaggedTensor(
        [*columns, "negative"],
        torch.cat([*(column.values() for column in columns.values()), rows]),
        lengths=torch.cat([*(column.lengths() for column in columns.values()), torch.tensor([N_ITEMS] + [0] * 7)]),
    )
    log_count = torch.zeros(N_ITEMS) if sampled else None
    given = bseq.Batch.of(features, log_expected_count_N=log_count)
    task = bseq.SequenceInterestTask(POPULARITY, N_ITEMS)
    with pytest.raises(bseq.UsageError, match=r"no popularity columns: objective.popularity_days is for bseq.train"):
        task(given)
    priors = torch.zeros(N_ITEMS, 1), torch.zeros(len(given.target_ids_S), 1)
    loss, _ = task(replace(given, negative_priors_NP=priors[0], target_priors_SP=priors[1]))
    assert torch.isfinite(loss)


def test_what_publish_is_not_told_is_asked_for(vocabulary, histories, tmp_path):
    host = trained(Scoring(), 2)
    with pytest.raises(bseq.UsageError, match="histories=, vocabulary="):
        bseq.publish(host, tmp_path, histories=histories)
    fewer = bseq.Vocabulary(IDS[1:], np.ones(N_ITEMS - 1, np.int64), ())
    with pytest.raises(bseq.UsageError, match="the vocabulary has 29 items, the encoder's item table 31 rows"):
        bseq.publish(host, tmp_path, histories=histories, vocabulary=fewer)
    with pytest.raises(bseq.SchemaError, match="trained_until = '2026-02-01' has no time zone"):
        bseq.publish(host, tmp_path, histories=histories, vocabulary=vocabulary, trained_until="2026-02-01")
    with pytest.raises(bseq.UsageError, match="vocabulary and trained_until are for a host model"):
        bseq.publish(tmp_path / "run", tmp_path, vocabulary=vocabulary)


def test_event_types_are_those_of_the_encoder(vocabulary, histories, tmp_path):
    chosen = recipe(events={"features": ("event_type",)})
    encoder = bseq.SequenceInterestEncoder(chosen, N_ITEMS, 2, item_keys=["target"])
    typed = replace(vocabulary, event_types=("buy", "look", "put back"))
    with pytest.raises(bseq.UsageError, match="3 event types, the encoder was made with n_event_types = 2; give the"):
        bseq.publish(encoder, tmp_path, histories=histories, vocabulary=typed)
    fitting = replace(vocabulary, event_types=("buy", "look"))
    with pytest.raises(bseq.SchemaError, match=r"the encoder reads event types, but the histories have none"):
        bseq.publish(encoder, tmp_path, histories=histories, vocabulary=fitting)


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_can_not_be_written_leaves_nothing(there, vocabulary, histories, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    host, folder = trained(Scoring(), 2), tmp_path / "runs" / "host"
    (folder if there else folder.parent).mkdir(parents=True)
    monkeypatch.setattr(bseq.Sequences, "save", full)
    with pytest.raises(bseq.RunError, match="no space left on device"):
        bseq.Run.from_host(host, folder, histories=histories, vocabulary=vocabulary)
    assert [path.name for path in tmp_path.rglob("*")] == (["runs", "host"] if there else ["runs"])
    monkeypatch.undo()
    assert bseq.Run.from_host(host, folder, histories=histories, vocabulary=vocabulary).model().towers is None
    (tmp_path / "file").write_text("")
    with pytest.raises(bseq.RunError, match="file is not empty; give a new folder"):
        bseq.Run.from_host(host, tmp_path / "file", histories=histories, vocabulary=vocabulary)


def test_a_hosts_run_is_a_run(vocabulary, histories, tmp_path):
    """Measured, published, opened, and begun with by another training."""
    host = trained(Scoring(recipe(split={"kind": "leave_one_out"})))
    run = bseq.Run.from_host(host, tmp_path / "run", histories=histories, vocabulary=vocabulary)
    assert bseq.Run.open(tmp_path / "run").info["status"] == "complete"
    report = bseq.evaluate(run, ks=(5,))
    assert "ndcg@5" in str(report)
    version = bseq.publish(run, tmp_path / "store")
    assert bseq.Retriever.open(tmp_path / "store").retrieve(histories.user_ids[:1], k=3)["rank"].tolist() == [1, 2, 3]
    assert version.startswith("v00000001")
    with pytest.raises(bseq.RunError, match="is not empty"):
        bseq.Run.from_host(host, tmp_path / "run", histories=histories, vocabulary=vocabulary)


def test_item_attributes_are_summed_into_the_rows(vocabulary, histories, tmp_path):
    from bseq_plugin.data.items import ItemAttributes

    shelves = pd.DataFrame({"item_id": IDS, "shelf": np.arange(N_ITEMS) % 3})
    attributes = ItemAttributes.from_frame(shelves, ["shelf"], vocabulary)
    host = trained(Scoring(recipe(items={"attributes": ["shelf"]}), attributes=attributes), 20)
    model = model_of_host(host, vocabulary, histories)
    torch.testing.assert_close(
        (model.encode(histories)[:, 0] @ model.item_vectors_VD[1:].T), scores_of(host, histories), rtol=1e-5, atol=1e-5
    )
