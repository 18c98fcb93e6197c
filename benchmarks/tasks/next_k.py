"""The next purchases as a sequence: the decoder, in each of the ways to decode, and the one-step model's top k.

Shape letters: U households.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from bseq_behaviour.next_k.fit_next_k import fit_next_k
from bseq_behaviour.next_k.futures import futures
from bseq_behaviour.next_k.judge_next_k import judge_next_k

from benchmarks import harness
from benchmarks.tasks.protocol import LOG_END, TEST_AT, TRAIN_AT, VALIDATION_AT, Case
from bseq_plugin.evaluation.bootstrap import bootstrap_interval

STEPS, KS, EPOCHS, N_SAMPLES = 10, (5, 10), 4, 8
ONE_STEP, COMMONEST, TYPES = "one step", "the user's commonest", "event type"
Judged = dict[str, dict[str, dict[str, np.ndarray]]]


def next_k(case: Case, seed: int) -> Judged:
    """ "k=5" and "k=10" -> ranker -> metric -> one number a household: the next purchases from 1 December on."""
    train = [futures(case.model, case.log, instant, STEPS, until_us=VALIDATION_AT) for instant in TRAIN_AT[::2]]
    held = futures(case.model, case.log, VALIDATION_AT, STEPS, until_us=TEST_AT)
    test = futures(case.model, case.log, TEST_AT, STEPS, until_us=LOG_END)
    decoder = fit_next_k(case.model, train, STEPS, held, epochs=EPOCHS, seed=seed)
    return {f"k={k}": judge_next_k(decoder, test, k, n_samples=N_SAMPLES, seed=seed) for k in KS}


def next_k_summary(of_seeds: list[Judged]) -> dict[str, Any]:
    """Means over seeds and households with 95 % intervals over households, and paired differences to the one-step model
    (of event types: to the type that the household had most).
    """
    found: dict[str, Any] = {}
    for k in of_seeds[0]:
        found[k] = {}
        for name, metrics in of_seeds[0][k].items():
            base_name = COMMONEST if name == TYPES else ONE_STEP
            found[k][name] = {}
            for metric in metrics:
                own_U = np.mean([judged[k][name][metric] for judged in of_seeds], axis=0)
                base = [
                    judged[k][name][COMMONEST] if name == TYPES else judged[k][base_name][metric] for judged in of_seeds
                ]
                base_U = np.mean(base, axis=0)
                found[k][name][metric] = {
                    "mean": float(own_U.mean()),
                    "interval": [float(x) for x in bootstrap_interval(own_U)],
                    "seeds": [float(judged[k][name][metric].mean()) for judged in of_seeds],
                    "difference": float((own_U - base_U).mean()),
                    "difference_interval": [float(x) for x in bootstrap_interval(own_U - base_U)],
                }
    return found


def next_k_claims(figures: dict[str, Any]) -> list[harness.Claim]:
    """Whether the expected counts are ahead of the one-step model, and the decoder's types of the commonest."""
    made = []
    for k, rankers in figures.items():
        for metric in ("recall", "ndcg"):
            low = rankers["expected"][metric]["difference_interval"][0]
            name = f"next {k}: {metric} of the decoder (expected counts) over one step, lower end"
            made.append(harness.claim(name, low, 0.0, low > 0))
        low = rankers[TYPES]["decoder"]["difference_interval"][0]
        name = f"next {k}: event types of the decoder over the household's commonest, lower end"
        made.append(harness.claim(name, low, 0.0, low > 0))
    return made
