"""The decoder of the next k events: causal, begun as the encoder, searched exhaustively, and taught a cycle."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from bseq_behaviour.contract.heads import DecoderMemory
from bseq_behaviour.heads.transformer import TransformerHead, TransformerOptions
from bseq_behaviour.next_k.decoder_file import load_decoder, save_decoder
from bseq_behaviour.next_k.fit_next_k import fit_next_k
from bseq_behaviour.next_k.futures import futures, memory_of
from bseq_behaviour.next_k.judge_next_k import judge_next_k, rank_next_k
from bseq_behaviour.next_k.paths import Paths, aggregate, beam_search, expected_items, sample_paths

import bseq_plugin as bseq

B, M, S, D, V, TYPES, J = 3, 4, 5, 6, 4, 2, 3


@pytest.fixture
def decoder():
    """With an output layer that is not zero, so that steps matter."""
    torch.manual_seed(0)
    made = TransformerHead(S, torch.randn(V + 1, D), TYPES, J, TransformerOptions(dim=8)).eval()
    torch.nn.init.normal_(made.item_out.weight)
    torch.nn.init.normal_(made.again_out.weight)
    return made


@pytest.fixture
def memory():
    torch.manual_seed(1)
    padded = torch.zeros(B, M, dtype=torch.bool)
    padded[1, 2:] = True
    items, types = torch.randint(0, V + 1, (B, M)), torch.randint(0, TYPES + 1, (B, M))
    return DecoderMemory(torch.randn(B, M, S), items, types, padded, torch.randn(B, D))


def test_a_decoder_that_has_learned_nothing_is_the_one_step_model(memory):
    begun = TransformerHead(S, torch.randn(V + 1, D), TYPES, J).eval()
    items, types = torch.randint(1, V + 1, (B, J)), torch.zeros(B, J, dtype=torch.int64)
    logits, _ = begun(memory, items, types)
    scores = memory.interest_BD @ begun.item_vectors_VD.T
    for step in range(J):
        torch.testing.assert_close(logits[:, step, 1:], scores[:, 1:])
    best = beam_search(begun, memory, J, 1).items_BRJ[:, 0]
    torch.testing.assert_close(best, scores[:, 1:].argsort(1, descending=True)[:, :J] + 1)


def test_a_step_reads_only_the_steps_before(decoder, memory):
    """Teacher forcing gives at once what one step after the other gives."""
    items, types = torch.randint(1, V + 1, (B, J)), torch.randint(0, TYPES + 1, (B, J))
    logits, type_logits = decoder(memory, items, types)
    for step in range(J):
        part, of_types = decoder(memory, items[:, : step + 1], types[:, : step + 1])
        torch.testing.assert_close(part[:, -1], logits[:, step])
        torch.testing.assert_close(of_types[:, -1], type_logits[:, step])
        changed = items.clone()
        changed[:, step:] = changed[:, step:] % V + 1
        torch.testing.assert_close(decoder(memory, changed, types)[0][:, step], logits[:, step])


def test_padding_and_other_users_do_not_matter(decoder, memory):
    items, types = torch.randint(1, V + 1, (B, J)), torch.zeros(B, J, dtype=torch.int64)
    whole = decoder(memory, items, types)[0]
    noisy = DecoderMemory(
        memory.states_BMS + 9 * memory.padded_BM[..., None], torch.where(memory.padded_BM, 2, memory.items_BM),
        torch.where(memory.padded_BM, 1, memory.types_BM), memory.padded_BM, memory.interest_BD,
    )  # fmt: skip
    torch.testing.assert_close(decoder(noisy, items, types)[0], whole)
    alone = decoder(memory.take(torch.tensor([1])), items[1:2], types[1:2])[0]
    torch.testing.assert_close(alone[0], whole[1])


def chance(decoder, memory, user, path, repeats):
    """Log chance of a path, step by step, with the likeliest types, as the search takes them."""
    total, types = 0.0, []
    for step, item in enumerate(path):
        items = torch.tensor([[*path[:step], 0]])
        logits, type_logits = decoder(memory.take(torch.tensor([user])), items, torch.tensor([[*types, 0]]))
        step_logits = logits[0, -1].clone()
        if not repeats:
            step_logits[list(path[:step])] = -torch.inf
        total += step_logits.log_softmax(0)[item].item()
        types.append(int(type_logits[0, -1].argmax()))
    return total, types


@pytest.mark.parametrize("repeats", [True, False])
def test_a_beam_wide_enough_finds_what_trying_every_sequence_finds(decoder, memory, repeats):
    every = itertools.product(range(1, V + 1), repeat=J) if repeats else itertools.permutations(range(1, V + 1), J)
    paths = list(every)
    found = beam_search(decoder, memory, J, V**J, repeats)
    for user in range(B):
        scored = sorted(((chance(decoder, memory, user, path, repeats), path) for path in paths), reverse=True)
        for rank in range(5):
            (log_chance, types), path = scored[rank]
            assert tuple(found.items_BRJ[user, rank].tolist()) == path
            assert found.types_BRJ[user, rank].tolist() == types
            assert found.log_chance_BR[user, rank].item() == pytest.approx(log_chance, abs=1e-4)


def test_samples_are_as_frequent_as_they_are_likely(decoder, memory):
    n = 4000
    one = memory.take(torch.tensor([0]))
    found = sample_paths(decoder, one, 2, n, generator=torch.Generator().manual_seed(0))
    assert (found.items_BRJ[0, :, 0] != found.items_BRJ[0, :, 1]).all()  # no item twice
    assert (found.log_chance_BR.diff() <= 1e-6).all()
    for path in itertools.permutations(range(1, V + 1), 2):
        share = (found.items_BRJ[0] == torch.tensor(path)).all(1).float().mean().item()
        likely = torch.tensor(chance(decoder, memory, 0, path, False)[0]).exp().item()
        assert share == pytest.approx(likely, abs=0.03)


def test_expected_counts_are_those_of_all_sequences(decoder, memory):
    """The chance that an item is among the steps, summed over every sequence there is; and no more than one sample of a
    first step is needed, whose chances do not depend on what was drawn.
    """
    one = memory.take(torch.tensor([1]))
    wanted = torch.zeros(V + 1)
    for path in itertools.permutations(range(1, V + 1), 2):
        wanted[list(path)] += math.exp(chance(decoder, memory, 1, path, False)[0])
    found = expected_items(sample_paths(decoder, one, 2, 3000, generator=torch.Generator().manual_seed(0)))[0]
    torch.testing.assert_close(found, wanted, atol=0.01, rtol=0)
    assert found.sum().item() == pytest.approx(2, abs=1e-4)
    first = expected_items(sample_paths(decoder, one, 1, 1))[0]
    logits, _ = decoder(one, torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))
    torch.testing.assert_close(first, logits[0, 0].softmax(0))
    with pytest.raises(bseq.UsageError, match="searched, not sampled"):
        expected_items(beam_search(decoder, one, 2, 2))


def test_what_was_had_often_can_come_again(decoder, memory):
    """The second part of a logit, by hand; padding is not counted."""
    torch.nn.init.zeros_(decoder.item_out.weight)
    torch.nn.init.zeros_(decoder.again_out.weight)
    torch.nn.init.constant_(decoder.again_out.bias, 2.0)
    logits, _ = decoder(memory, torch.ones(B, 1, dtype=torch.int64), torch.zeros(B, 1, dtype=torch.int64))
    for user in range(B):
        own = memory.items_BM[user][~memory.padded_BM[user]].tolist()
        for item in range(1, V + 1):
            wanted = memory.interest_BD[user] @ decoder.item_vectors_VD[item] + 2 * math.log1p(own.count(item))
            torch.testing.assert_close(logits[user, 0, item], wanted)


def test_there_are_no_more_sequences_than_there_are(decoder, memory):
    """A beam wider than the catalogue: what can not be is empty, and votes for nothing."""
    found = beam_search(decoder, memory, 2, 50)
    n = V * (V - 1)
    assert (found.items_BRJ[:, :n] > 0).all()
    assert (found.log_chance_BR[:, :n] > -torch.inf).all()
    assert (found.items_BRJ[:, n:] == 0).all()
    assert (found.log_chance_BR[:, n:] == -torch.inf).all()
    votes = aggregate(found, V, V + 1)
    assert (votes > 0).all()


def test_aggregation_by_hand():
    items = torch.tensor([[[1, 2, 3], [2, 1, 4]]])
    paths = Paths(items, torch.zeros_like(items), torch.log(torch.tensor([[0.75, 0.25]])))
    # 1: 1 + 1/2, 2: 1/2 + 1, 3 and 4: 1/3; equal sums in the order of rows
    assert aggregate(paths, 3, 6).tolist() == [[1, 2, 3]]
    # 1: .75 + .125, 2: .375 + .25, 3: .25, 4: .083
    assert aggregate(paths, 5, 6, weighted=True).tolist() == [[1, 2, 3, 4, 0]]


def test_a_cycle_is_learned_where_one_step_ahead_is_not_enough():
    """After item i comes i + 1, of the other type: the interest knows only where the cycle stands."""
    torch.manual_seed(0)
    n_items, n_steps = 8, 4
    vectors = torch.cat([torch.zeros(1, n_items), torch.eye(n_items)])
    decoder = TransformerHead(n_items, vectors, 2, n_steps, TransformerOptions(dim=32, dropout=0.0))
    optimizer = torch.optim.Adam(decoder.parameters(), lr=5e-3)

    def batch(last):
        states = torch.eye(n_items)[last][:, None]
        nothing = torch.zeros(len(last), 1, dtype=torch.int64)
        memory = DecoderMemory(states, nothing, nothing, nothing.bool(), torch.eye(n_items)[(last + 1) % n_items])
        items = (last[:, None] + 1 + torch.arange(n_steps)) % n_items + 1
        return memory, items, items % 2 + 1

    for _ in range(250):
        optimizer.zero_grad()
        decoder.loss(*batch(torch.randint(0, n_items, (64,)))).backward()
        optimizer.step()
    memory, items, types = batch(torch.arange(n_items))
    found = beam_search(decoder.eval(), memory, n_steps, 3)
    assert torch.equal(found.items_BRJ[:, 0], items)
    assert torch.equal(found.types_BRJ[:, 0], types)
    assert torch.equal(aggregate(found, n_steps, n_items + 1, weighted=True)[:, 0], items[:, 0])


def test_steps_that_are_not_there_do_not_count(decoder, memory):
    items, types = torch.tensor([[1, 2, 0], [3, 0, 0], [0, 0, 0]]), torch.zeros(B, J, dtype=torch.int64)
    logits, type_logits = decoder(memory, items, types)
    log_items, log_types = logits.log_softmax(-1), type_logits.log_softmax(-1)
    there = [(0, 0, 1), (0, 1, 2), (1, 0, 3)]
    wanted = -sum(log_items[u, j, i] + log_types[u, j, 0] for u, j, i in there) / 3
    torch.testing.assert_close(decoder.loss(memory, items, types), wanted)
    nothing = decoder.loss(memory, torch.zeros_like(items), types)
    nothing.backward()
    assert nothing.item() == 0


def test_what_can_not_be_decoded(decoder, memory):
    with pytest.raises(bseq.UsageError, match="1 to 3 steps"):
        beam_search(decoder, memory, J + 1, 2)
    with pytest.raises(bseq.UsageError, match="1 to 3 steps"):
        sample_paths(decoder, memory, 0, 2)
    with pytest.raises(bseq.UsageError, match="0 sequences"):
        beam_search(decoder, memory, 1, 0)
    with pytest.raises(bseq.UsageError, match="temperature"):
        sample_paths(decoder, memory, 1, 2, temperature=0)
    small = TransformerHead(S, torch.randn(2 + 1, D), TYPES, J)
    with pytest.raises(bseq.UsageError, match="there are 2 items"):
        beam_search(small, memory, 3, 2)
    memory = replace(memory, items_BM=memory.items_BM % 3)
    assert beam_search(small, memory, 3, 2, repeats=True).items_BRJ.shape == (B, 2, 3)


@pytest.fixture(scope="module")
def trained(habit_run):
    return bseq.InterestModel.from_run(habit_run.path), habit_run.sequences()


def test_futures_are_the_next_events_of_the_log_and_memory_its_latest_states(trained):
    model, log = trained
    at_us = int(log.timestamps.max()) - 9 * 86_400_000_000
    found = futures(model, log, at_us, 6, n_states=4)
    past, later = log.between(None, at_us), log.between(at_us, None)
    for place in range(0, len(found.users), 9):
        user = found.users[place]
        own = slice(later.offsets[user], later.offsets[user + 1])
        n = min(6, own.stop - own.start)
        assert n > 0
        assert found.items_BJ[place].tolist() == later.items[own][:n].tolist() + [0] * (6 - n)
        assert found.types_BJ[place].tolist() == later.event_types[own][:n].tolist() + [0] * (6 - n)
        history = past.take(np.array([user])).latest(model.recipe.encoder.max_length)
        states = bseq.event_states(model.encoder, history)[-4:]
        kept = ~found.memory.padded_BM[place]
        torch.testing.assert_close(found.memory.states_BMS[place][kept], states, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.memory.interest_BD[place], model.encode(history)[0, 0], rtol=1e-4, atol=1e-5)
    nobody = log.between(None, at_us)
    with pytest.raises(bseq.SchemaError, match="both before and after"):
        futures(model, nobody, at_us, 6)
    with pytest.raises(bseq.UsageError, match="before the end of training"):
        futures(model, log, model.trained_until_us, 6)
    with pytest.raises(bseq.UsageError, match="n_steps = 0"):
        futures(model, log, at_us, 0)


def test_memory_is_made_in_parts(trained, monkeypatch):
    """The same in calls of few events as in one; and several interests are not read by halves."""
    model, log = trained
    log = log.take(np.flatnonzero(log.lengths))
    whole = memory_of(model, log, 3)
    monkeypatch.setattr("bseq_behaviour.next_k.futures.EVENTS_PER_CALL", 40)
    part = memory_of(model, log, 3)
    for name in ("states_BMS", "items_BM", "types_BM", "padded_BM", "interest_BD"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(type(model.recipe), "interests_per_user", 2)
    with pytest.raises(bseq.UsageError, match="2 interests a user"):
        memory_of(model, log, 3)


def test_a_decoder_learns_from_a_log_is_judged_and_saved(trained, tmp_path):
    model, log = trained
    end_us, day_us = int(log.timestamps.max()), 86_400_000_000
    train = [futures(model, log, end_us - days * day_us, 4, n_states=4) for days in (24, 18)]
    test = futures(model, log, end_us - 9 * day_us, 4, n_states=4)
    decoder = fit_next_k(model, train, 4, epochs=4, learning_rate=5e-3, options={"dim": 16})
    with torch.no_grad():
        losses = [one.loss(test.memory, test.items_BJ, test.types_BJ).item() for one in (decoder, _begun(model, test))]
    assert losses[0] < losses[1]
    found = judge_next_k(decoder, test, 4, n_beams=3, n_samples=4)
    assert set(found) == {"one step", "first step", "beam", "samples", "expected", "event type"}
    own = [test.memory.types_BM[u][~test.memory.padded_BM[u]].tolist() for u in range(len(test.users))]
    assert test.usual_B.tolist() == [min(set(types), key=lambda t, of=types: (-of.count(t), t)) for types in own]
    right = [
        np.mean([t == usual for t, i in zip(types, items, strict=True) if i])
        for types, items, usual in zip(
            test.types_BJ.tolist(), test.items_BJ.tolist(), test.usual_B.tolist(), strict=True
        )
    ]
    np.testing.assert_allclose(found["event type"]["the user's commonest"], right)
    top = (test.memory.interest_BD @ model.item_vectors_VD[1:].T).topk(4, dim=1).indices + 1
    hits = [len(set(top[u].tolist()) & (set(test.items_BJ[u].tolist()) - {0})) for u in range(len(test.users))]
    wanted = [len(set(test.items_BJ[u].tolist()) - {0}) for u in range(len(test.users))]
    np.testing.assert_allclose(found["one step"]["recall"], np.array(hits) / np.array(wanted))
    # the same steps, the best epoch
    kept = fit_next_k(model, train, 4, test, epochs=4, learning_rate=5e-3, options={"dim": 16})
    with torch.no_grad():
        assert kept.loss(*test.take(torch.arange(len(test.users)))).item() <= losses[0] + 1e-6
    path = tmp_path / "new" / "decoder.safetensors"
    save_decoder(decoder, path, model)
    again = load_decoder(path, model)
    for one, other in zip(again(*test.take(torch.arange(5))), decoder(*test.take(torch.arange(5))), strict=True):
        assert torch.equal(one, other)
    assert again.options == decoder.options
    with pytest.raises(bseq.UsageError, match="k = 5, the futures have 1 to 4"):
        rank_next_k(decoder, test, 5)
    with pytest.raises(bseq.UsageError, match="4 steps are given, this decoder has 2"):
        fit_next_k(model, train, 2)
    with pytest.raises(bseq.BseqError, match="lower learning_rate"):
        fit_next_k(model, train, 4, learning_rate=float("inf"), epochs=2)
    with pytest.raises(bseq.UsageError, match="0 instants"):
        fit_next_k(model, [], 4)


def test_a_saved_decoder_that_does_not_belong_is_refused(trained, tmp_path):
    """By another model, of another head, or no decoder at all."""
    model, _ = trained
    path = tmp_path / "decoder"
    decoder = TransformerHead(4, model.item_vectors_VD, 2, 3, TransformerOptions(dim=8))
    moved = TransformerHead(4, model.item_vectors_VD + 1e-6, 2, 3, TransformerOptions(dim=8))
    smaller = TransformerHead(4, model.item_vectors_VD[:-1], 2, 3, TransformerOptions(dim=8))
    for other in (moved, smaller):  # as if trained with another model
        with pytest.raises(bseq.UsageError, match=f"other item vectors than those of model {model.digest[:12]}"):
            save_decoder(other, path, model)
        assert not path.exists()
    save_decoder(decoder, path, model)
    tensors, told = bseq.load_sealed(path, "")
    settings = json.loads(told["decoder"])
    assert (settings["head"], settings["options"]["dim"]) == ("transformer", 8)
    for changed, error in (
        ({"model_digest": "0" * 64}, "reads model 000000000000, this is model"),
        ({"options": {"dim": 16}}, "the saved sequence head 'transformer' does not fit its description"),
    ):
        bseq.save_sealed(path, tensors, {"decoder": json.dumps(settings | changed)})
        with pytest.raises(bseq.RunError, match=error):
            load_decoder(path, model)
    bseq.save_sealed(path, tensors, {"decoder": json.dumps(settings | {"head": "gone"})})
    with pytest.raises(bseq.UsageError, match="unknown sequence head 'gone'; there are: transformer"):
        load_decoder(path, model)
    bseq.save_sealed(path, tensors, {})
    with pytest.raises(bseq.RunError, match="is not a file that save_decoder wrote"):
        load_decoder(path, model)


def _begun(model, test):
    torch.manual_seed(0)
    n_types = len(model.vocabulary.event_types)
    state_dim = test.memory.states_BMS.shape[2]
    return TransformerHead(state_dim, model.item_vectors_VD, n_types, 4, TransformerOptions(dim=16)).eval()
