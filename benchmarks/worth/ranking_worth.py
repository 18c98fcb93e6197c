"""What ranking features and an attached encoder are worth on a year of grocery purchases.

    make bench-ranking_worth ARGS="--seeds 0,1,2"       # needs: pip install -e '.[demo,report,rankers]'
    make bench-ranking_worth ARGS="--every 6"           # a sixth of the households: to see that it runs

The encoder is trained on purchases before September 2017. Each week from then on, retrieval gives 50 candidates to
every household that bought anything in the eight weeks before; the label is whether it bought the candidate in the
seven days that follow. Rankers are trained on September and October, stopped on November and tested on December, which
is looked at once. Compared are the same models without and with our features: boosted trees and TorchRec's DLRM. The
models without them have ids and counts of the household and of the product (``plain``); and, as a harder test, counts
of both together, made by hand (``crosses``). All rank the same candidates. With --new these are products that the
household has not bought before, where counting purchases does not help. Writes
benchmarks/results/ranking_worth.json and, with --picture FILE, what the trees read.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks import harness
from benchmarks.worth.data import Rows, encoder_store, groups_of, rows_of, with_category_counts, with_varying_columns
from benchmarks.worth.measure import Quality, gain, ndcg_of_requests, quality, summary
from benchmarks.worth.rankers import (
    CATEGORICAL,
    SPARSE,
    DlrmData,
    Scale,
    base_names,
    base_of,
    dlrm,
    fit_dlrm,
    logistic,
    predict_dlrm,
    trees,
)
from bseq_plugin import Recipe, Retriever, plugin_manager
from bseq_plugin.demo.data import DemoData, load
from bseq_plugin.events.sequences import Sequences

note = Console(stderr=True)
Parts = dict[str, Rows]
BASES = ("plain", "crosses")


def tree_inputs(rows: Rows, base: str, columns: np.ndarray | None) -> np.ndarray:
    """Counts and categories, and the chosen ones of our columns."""
    given = np.concatenate([base_of(rows, base), rows.frame[list(CATEGORICAL)].to_numpy(np.float32)], axis=1)
    return given if columns is None else np.concatenate([given, rows.features[:, columns]], axis=1)


def fit_trees(parts: Parts, base: str, columns: np.ndarray | None, seed: int) -> tuple[Any, np.ndarray]:
    """(model, probabilities on the test weeks)."""
    labels = {name: rows.frame["label"].to_numpy() for name, rows in parts.items()}
    held_out = tree_inputs(parts["validation"], base, columns), labels["validation"]
    model = trees(tree_inputs(parts["train"], base, columns), labels["train"], held_out, seed)
    return model, model.predict_proba(tree_inputs(parts["test"], base, columns))[:, 1]


KINDS = ("", "features", "encoder")  # what is added to a base: nothing, our columns, the attached encoder


class Dlrms:
    """The DLRMs of one base: as it is, with our columns, with the attached encoder."""

    def __init__(self, parts: Parts, base: str, data: DemoData, retriever: Retriever) -> None:
        self.retriever, self.base = retriever, base
        ids = {name: np.unique(np.concatenate([rows.frame[name] for rows in parts.values()])) for name in SPARSE}
        self.n_rows = [len(found) for found in ids.values()]
        self.item_rows = retriever.model.vocabulary.item_rows(ids["item_id"])
        scales = [Scale.of(base_of(parts["train"], base)), Scale.of(parts["train"].features)]
        log = Sequences.from_events(data.events, retriever.model.vocabulary)
        self.data = {
            name: {kind: self._data(rows, ids, scales, kind, log) for kind in KINDS} for name, rows in parts.items()
        }

    def _data(self, rows: Rows, ids: dict[str, np.ndarray], scales: list[Scale], kind: str, log: Sequences) -> DlrmData:
        dense = [scales[0](base_of(rows, self.base))]
        if kind == "features":
            missing = np.isnan(rows.features)
            dense += [scales[1](rows.features), missing.astype(np.float32)]
        sparse = np.stack([np.searchsorted(ids[name], rows.frame[name]) for name in SPARSE], axis=1)
        interests = self._interests(rows, log) if kind == "encoder" else None
        return DlrmData(
            torch.from_numpy(np.concatenate(dense, axis=1)),
            torch.from_numpy(sparse),
            torch.from_numpy(rows.frame["label"].to_numpy(np.float32)),
            torch.from_numpy(rows.frame["request"].to_numpy().copy()),
            interests,
        )

    def _interests(self, rows: Rows, log: Sequences) -> torch.Tensor:
        """float32 [Q, I], the encoder's interest of each request, from events before it."""
        requests = rows.frame.drop_duplicates("request").sort_values("request")
        place = np.searchsorted(log.user_ids, requests["user_id"])
        at_us = requests["at"].dt.as_unit("us").astype("int64").to_numpy()
        interests = []
        for instant in np.unique(at_us):
            past = log.between(None, int(instant)).take(place[at_us == instant])
            interests.append(self.retriever.model.encode(past)[:, 0])
        return torch.cat(interests)  # requests are numbered week by week

    def scores(self, kind: str, seed: int) -> np.ndarray:
        """Probabilities on the test weeks of one DLRM."""
        train, held_out, test = (self.data[part][kind] for part in ("train", "validation", "test"))
        model = self.retriever.model if kind == "encoder" else None
        module = dlrm(train.dense.shape[1], self.n_rows, seed, model, self.item_rows)
        return predict_dlrm(fit_dlrm(module, train, held_out, seed), test)


def importances(model: Any, test: Rows, names: list[str], seed: int) -> dict[str, float]:
    """Loss of NDCG@10 on the test weeks when a column of ours is permuted, a quarter of the requests."""
    some = test.frame["request"].to_numpy() % 4 == 0
    inputs = tree_inputs(test, "crosses", np.arange(len(names)))[some]
    request, label = test.frame["request"].to_numpy()[some], test.frame["label"].to_numpy()[some]
    start, whole = inputs.shape[1] - len(names), None
    rng, lost = np.random.default_rng(seed), {}
    whole = ndcg_of_requests(request, label, model.predict_proba(inputs)[:, 1]).mean()
    all_names = [*base_names("crosses"), *CATEGORICAL, *names]
    for place, name in enumerate(all_names):
        permuted = inputs.copy()
        permuted[:, place] = rng.permutation(permuted[:, place])
        lost[name] = float(whole - ndcg_of_requests(request, label, model.predict_proba(permuted)[:, 1]).mean())
        if place < start:
            lost[f"{name} (count)"] = lost.pop(name)
    return lost


def draw(lost: dict[str, float], path: Path) -> None:
    """The 25 columns that the trees lose most without, as bars."""
    from matplotlib.figure import Figure

    top = sorted(lost.items(), key=lambda item: item[1])[-25:]
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    panel = figure.subplots()
    colours = ["#b9c2cc" if "(count)" in name else "#1f6fb4" for name, _ in top]
    panel.barh([name for name, _ in top], [value for _, value in top], color=colours)
    panel.set_xlabel("NDCG@10 lost when the column is permuted (blue: ours, grey: counts)")
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    figure.savefig(path, dpi=130)


def compare(
    parts: Parts, data: DemoData, retriever: Retriever, seeds: list[int], ablation: bool
) -> tuple[dict[str, Any], Any]:
    """All rankers on all seeds, the ablation by group, and the trees with everything of the first seed."""
    test, names = parts["test"].frame, parts["test"].names
    labels, ours = parts["train"].frame["label"].to_numpy(), np.arange(len(names))
    groups = np.array(groups_of(names, retriever))
    chosen: dict[str, tuple[str, np.ndarray | None]] = {
        name: (base, columns)
        for base in BASES
        for name, columns in ((f"trees, {base}", None), (f"trees, {base} + features", ours))
    }
    for group in sorted(set(groups)) if ablation else ():
        chosen[f"trees, plain + features but {group}"] = "plain", ours[groups != group]
        chosen[f"trees, plain + {group} alone"] = "plain", ours[groups == group]
    networks = {base: Dlrms(parts, base, data, retriever) for base in BASES}
    kept = None
    found: dict[str, list[Quality]] = {}
    for seed in seeds:
        scores = {"retrieval's own order": 1 / (1 + test["rank"].to_numpy())}
        for base in BASES:
            inputs = [base_of(parts[part], base) for part in ("train", "test")]
            scores[f"logistic regression, {base}"] = logistic(inputs[0], labels, inputs[1], seed)
        for name, (base, columns) in chosen.items():
            model, scores[name] = fit_trees(parts, base, columns, seed)
            kept = model if kept is None and name == "trees, crosses + features" else kept
        for base in BASES:
            for kind in KINDS:
                scores[f"DLRM, {base}{' + ' * bool(kind)}{kind}"] = networks[base].scores(kind, seed)
        for name, values in scores.items():
            found.setdefault(name, []).append(quality(test, values))
        note.print(f"seed {seed}: " + ", ".join(f"{name} {q[-1].ndcg:.4f}" for name, q in found.items()))
    gains = {
        f"{ranker}, {base} + {kind} over {base}": gain(found[f"{ranker}, {base} + {kind}"], found[f"{ranker}, {base}"])
        for base in BASES
        for ranker, kind in (("trees", "features"), ("DLRM", "features"), ("DLRM", "encoder"))
    }
    return {"rankers": {name: summary(q) for name, q in found.items()}, "gains": gains}, kept


def claims(gains: dict[str, Any]) -> list[harness.Claim]:
    """Ours raise NDCG@10 and AUC of the trees and of the DLRM, outside the noise of seeds and households."""
    return [
        harness.claim(f"{metric}: {name}", of[metric], 0.0, of[f"{metric}_outside_noise"])
        for name, of in gains.items()
        for metric in ("ndcg", "auc")
    ]


def main() -> None:
    """Train, retrieve, rank, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--every", type=int, default=1, help="households: 1 = all, 6 = a sixth")
    parser.add_argument("--epochs", type=int, default=10, help="of the encoder")
    parser.add_argument("--new", action="store_true", help="candidates that the household has not bought before")
    parser.add_argument("--picture", type=Path, help="PNG of the importances")
    parser.add_argument("--look-at", choices=["test", "validation"], default="test", help="for choices: November")
    parser.add_argument("--no-ablation", action="store_true", help="leave out the trees without each group")
    asked = parser.parse_args()
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    if not any("bseq_attach" in info.hooks for info in plugin_manager().infos()):
        import bseq_dlrm

        plugin_manager().register(bseq_dlrm, "dlrm")
    data = load("completejourney", asked.every)
    with tempfile.TemporaryDirectory() as folder:
        note.print("[bold]training the encoder on purchases before September[/bold]")
        retriever = encoder_store(
            data, Recipe.load("completejourney").replace(training={"epochs": asked.epochs}), Path(folder)
        )
        parts = {}
        for part in ("train", "validation", "test")[: 3 if asked.look_at == "test" else 2]:
            note.print(f"[bold]candidates, labels and features: {part}[/bold]")
            parts[part] = with_category_counts(rows_of(part, data, retriever, asked.new), data.events, data.items)
        parts = with_varying_columns({"test": parts["validation"], **parts})
        figures, model = compare(parts, data, retriever, seeds, not asked.no_ablation)
    sizes = {p: {"rows": len(r.frame), "bought": int(r.frame["label"].sum())} for p, r in parts.items()}
    figures |= {"sizes": sizes, "importances": importances(model, parts["test"], parts["test"].names, seeds[0])}
    if asked.picture:
        draw(figures["importances"], asked.picture)
    for name, of in figures["rankers"].items():
        low, high = of["ndcg_households"]
        print(
            f"{name:<34} NDCG@10 {of['ndcg']:.4f} sd {of['ndcg_sd']:.4f} ({low:.4f} to {high:.4f})  "
            f"AUC {of['auc']:.4f} sd {of['auc_sd']:.4f}  log-loss {of['log_loss']:.4f}"
        )
    held = claims(figures["gains"])
    for claim in held:
        print(f"{claim['name']:<66} {claim['value']:+.4f}  {harness.verdict(claim)}")
    harness.write("ranking_worth", figures, held)


if __name__ == "__main__":
    main()
