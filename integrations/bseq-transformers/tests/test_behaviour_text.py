"""Behaviour told as text, and a Transformer that reads it: by hand, on constructed tasks, saved and loaded."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from bseq_transformers.backbone import open_backbone
from bseq_transformers.classifier import ClassifierOptions, TextClassifier
from bseq_transformers.template import DAY_US, HOUR_US, TemplateOptions, behaviour_texts
from bseq_transformers.tuning import METHODS, trained_share, tuned
from safetensors import safe_open
from safetensors.torch import save_file

import bseq_plugin as bseq

NOON = 1_700_000_000_000_000
VOCABULARY = bseq.Vocabulary(np.array([10, 20, 30]), np.array([5, 5, 5]), ("bought", "viewed"))
NAMES = ["", "bread", "milk", "lip balm"]


def histories(sessions=True, types=True):
    """Three users: two sessions; nothing; one event of an item that nobody knows."""
    ago = np.array([9 * DAY_US, 9 * DAY_US, 9 * DAY_US, 26 * HOUR_US, 26 * HOUR_US, 3 * HOUR_US])
    return bseq.Sequences(
        np.array([1, 2, 3]),
        np.array([0, 5, 5, 6]),
        np.array([1, 2, 1, 3, 2, 0]),
        NOON - ago,
        np.array([1, 2, 1, 1, 1, 2]) if types else None,
        np.array([0, 0, 0, 1, 1, 0]) if sessions else None,
    )


def test_told_by_hand():
    told = behaviour_texts(histories(), VOCABULARY, NAMES, NOON)
    assert told == [
        "1 day ago bought lip balm, milk; 7 days before that bought bread, viewed milk",
        "",
        "3 hours ago viewed 1 unknown",
    ]
    few = TemplateOptions(max_sessions=1, items_per_session=1, event_words={"bought": "got"})
    assert behaviour_texts(histories(), VOCABULARY, NAMES, NOON, few)[0] == "1 day ago got lip balm and 1 more"
    bare = behaviour_texts(histories(sessions=False, types=False), VOCABULARY, NAMES, NOON)
    assert bare[0] == "1 day ago lip balm, milk; 7 days before that bread, milk"


def test_what_can_not_be_told():
    with pytest.raises(bseq.UsageError, match="has an event at .*, not before at_us"):
        behaviour_texts(histories(), VOCABULARY, NAMES, NOON - 3 * HOUR_US)
    with pytest.raises(bseq.UsageError, match="there are 2 item texts; wanted 4"):
        behaviour_texts(histories(), VOCABULARY, NAMES[:2], NOON)
    for words in ({"purchased": "bought"}, {"": "did"}):
        with pytest.raises(bseq.UsageError, match=r"event_words names .*; the event types are \['bought', 'viewed'\]"):
            behaviour_texts(histories(), VOCABULARY, NAMES, NOON, TemplateOptions(event_words=words))
    timeless = bseq.Sequences(np.array([1]), np.array([0, 1]), np.array([1]))
    with pytest.raises(bseq.UsageError, match="these histories have none"):
        behaviour_texts(timeless, VOCABULARY, NAMES, NOON)


@pytest.mark.parametrize("method", METHODS)
def test_only_what_the_method_says_learns(tiny_model, method):
    torch.manual_seed(0)
    model = tuned(open_backbone(str(tiny_model)).model(), method, rank=2)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    learning = [value for value in model.parameters() if value.requires_grad]
    learned, whole = trained_share(model)
    assert learned == sum(value.numel() for value in learning)
    # 2 layers x (query, value) x (16 x 2 + 2 x 16); four of 16 x 16 + 16, then 16 x 32 + 32, 32 x 16 + 16 and the norms
    wanted = {"frozen": 0, "lora": 2 * 2 * 64, "last_layer": 4 * 272 + 544 + 528 + 64, "full": whole}
    assert learned == wanted[method]
    if not learning:
        return
    tokens = {"input_ids": torch.tensor([[2, 6, 7, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    optimizer = torch.optim.SGD(learning, lr=1.0)
    for _ in range(2):  # the first step of LoRA moves one of its two factors only
        model(**tokens).last_hidden_state[:, :, :3].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved <= {name for name, value in model.named_parameters() if value.requires_grad}
    assert moved


@pytest.fixture(scope="module")
def task():
    """Texts with "red" or with "blue" somewhere: what comes is told by that word."""
    random = np.random.default_rng(0)
    others = ["lip", "balm", "nail", "polish", "bread", "milk", "fresh"]
    labels = random.integers(0, 2, 240)
    texts = []
    for label in labels:
        words = list(random.choice(others, 5))
        words.insert(int(random.integers(0, 6)), ("blue", "red")[label])
        texts.append(" ".join(words))
    return texts, labels


@pytest.mark.parametrize(("method", "learning_rate"), [("lora", 3e-2), ("full", 5e-3)])
def test_it_learns_what_a_word_means(tiny_model, task, method, learning_rate, tmp_path):
    texts, labels = task
    options = ClassifierOptions(
        model=str(tiny_model),
        method=method,
        epochs=6,
        batch=16,
        learning_rate=learning_rate,
        head_learning_rate=5e-2,
        dtype="float32",
    )
    classifier = TextClassifier(options)
    assert np.array_equal(classifier.predict(texts[:3]), np.full((3, 2), 0.5, np.float32))
    losses = classifier.fit(texts[:180], labels[:180])
    assert losses[-1] < 0.4 < losses[0]
    found = classifier.predict(texts[180:])
    assert ((found[:, 1] > 0.5) == labels[180:]).mean() > 0.9
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    one_by_one = np.concatenate([classifier.predict([text]) for text in texts[180:184]])
    np.testing.assert_allclose(one_by_one, found[:4], atol=1e-5)
    classifier.save(tmp_path / "saved")
    np.testing.assert_allclose(TextClassifier.load(tmp_path / "saved").predict(texts[180:]), found, atol=1e-6)


def test_another_time_the_same_is_learned(tiny_model, task):
    texts, labels = task
    options = ClassifierOptions(model=str(tiny_model), epochs=1)
    first, second = TextClassifier(options), TextClassifier(options)
    assert first.fit(texts, labels) == second.fit(texts, labels)
    assert np.array_equal(first.predict(texts[:5]), second.predict(texts[:5]))


def test_what_does_not_fit_is_refused(tiny_model, save_tiny, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    classifier = TextClassifier(ClassifierOptions(model=str(folder)))
    for labels, message in (
        ([0], "1 labels for 2 texts"),
        ([0, 2], "labels are 0 to 1; found 0 to 2"),
        ([-1, 0], "labels are 0 to 1; found -1 to 0"),
        ([0.2, 1.0], "labels are whole numbers from 0 to 1; found float64"),
    ):
        with pytest.raises(bseq.UsageError, match=message):
            classifier.fit(["a", "b"], labels)
    with pytest.raises(bseq.UsageError, match="0 labels for 0 texts"):
        classifier.fit([], [])
    assert classifier.predict([]).shape == (0, 2)
    with pytest.raises(bseq.UsageError, match=r"give what TextClassifier.save wrote"):
        TextClassifier.load(tmp_path / "nothing")
    classifier.save(tmp_path / "saved")
    save_tiny(folder, seed=5)
    with pytest.raises(bseq.UsageError, match="are not those that .* was trained with"):
        TextClassifier.load(tmp_path / "saved")
    with pytest.raises(bseq.UsageError, match="method = 'most'; choose one of frozen, last_layer, lora, full"):
        tuned(open_backbone(str(tiny_model)).model(), "most")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda told: {**told, "options": json.dumps({**json.loads(told["options"]), "rank": 3})}, "does not fit"),
        (lambda told: {**told, "options": json.dumps({**json.loads(told["options"]), "depth": 3})}, "depth"),
        (lambda told: {**told, "options": "{"}, "is damaged"),
        (lambda told: {"backbone": told["backbone"]}, "is damaged"),
        (None, "is damaged"),
    ],
)
def test_a_saved_classifier_that_was_changed_is_refused(tiny_model, tmp_path, spoil, message):
    classifier = TextClassifier(ClassifierOptions(model=str(tiny_model)))
    classifier.save(tmp_path)
    [path] = tmp_path.iterdir()  # nothing is left beside it
    if spoil is None:
        path.write_bytes(path.read_bytes()[:-9])
    else:
        with safe_open(path, "pt") as file:
            told, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(weights, path, metadata=spoil(told))
    with pytest.raises(bseq.BseqError, match=message):
        TextClassifier.load(tmp_path)


def test_odd_texts_are_read(tiny_model):
    odd = ["", " ", "😀💄 " * 10_000, "אדום שפתון", "أحمر", "\ud800 lip", "a\0b", "lip " * 10_000]
    classifier = TextClassifier(ClassifierOptions(model=str(tiny_model), epochs=1, batch=3))
    assert all(np.isfinite(classifier.fit(odd, [0, 1] * 4)))
    assert np.isfinite(classifier.vectors(odd)).all()


def test_nobody_elses_random_numbers_change(tiny_model, task):
    texts, labels = task
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    TextClassifier(ClassifierOptions(model=str(tiny_model), epochs=1)).fit(texts[:8], labels[:8])
    assert torch.equal(torch.rand(3), wanted)


def test_a_frozen_backbone_is_trained_on_the_vectors_it_gives(tiny_model, task):
    """The head's first loss is that of the vectors without dropout, whatever is drawn."""
    texts, labels = task
    options = ClassifierOptions(model=str(tiny_model), method="frozen", epochs=40, batch=240, head_learning_rate=0.3)
    classifier = TextClassifier(options)
    before = classifier.vectors(texts)
    losses = classifier.fit(texts, labels)
    assert np.array_equal(classifier.vectors(texts), before)
    x, y, head = torch.from_numpy(before), torch.from_numpy(labels), torch.nn.Linear(16, 2)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.3, weight_decay=0.01)
    warm, wanted = 4, []
    for step in range(40):
        optimizer.param_groups[0]["lr"] = 0.3 * min((step + 1) / warm, (40 - step) / 36)
        loss = torch.nn.functional.cross_entropy(head(x), y)
        wanted.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(losses, wanted, atol=2e-2)
    assert losses[-1] < losses[0]


def test_a_loss_that_is_not_finite_is_told(tiny_model, task):
    texts, labels = task
    options = ClassifierOptions(model=str(tiny_model), method="full", epochs=9, batch=8, learning_rate=1e30)
    with pytest.raises(bseq.BseqError, match=r"the loss is (nan|inf); lower learning_rate"):
        TextClassifier(options).fit(texts, labels)
