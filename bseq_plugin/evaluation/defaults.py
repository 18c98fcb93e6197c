"""Which baselines a log is measured against."""

from __future__ import annotations

from bseq_plugin.evaluation.baselines import RECENT_DAYS, Baseline, PersonalFrequency, Popularity
from bseq_plugin.evaluation.neighbour_baselines import BasketCooccurrence, SessionKnn, TransitionGraph, UserKnn
from bseq_plugin.evaluation.rankers import Ranker, baseline_ranker
from bseq_plugin.events.sequences import Sequences

HALF_LIFE_DAYS = 120


def default_baselines(training: Sequences, at_us: int | None = None) -> list[Baseline]:
    """Return the baselines that this log can carry, not yet fitted.

    Always: popularity, personal frequency, transition graph, user kNN. With times: popularity of the last 28 days and
    personal frequency with a half life of 120 days. With sessions: session kNN and basket co-occurrence; there the
    graph does without a second hop, which only helps where histories are short (measured on both kinds of log).

    Args:
        training: what the baselines will be fitted on.
        at_us: the request time, from which ages are counted; by default just after the newest event.
    """
    timed, sessions = training.timestamps is not None, training.session_ids is not None
    baselines: list[Baseline] = [Popularity(at_us=at_us)]
    if timed:
        baselines.append(Popularity(RECENT_DAYS, at_us))
    baselines.append(PersonalFrequency(at_us=at_us))
    if timed:
        baselines.append(PersonalFrequency(HALF_LIFE_DAYS, at_us))
    baselines.append(TransitionGraph(second_hop=0.0 if sessions else 0.15, at_us=at_us))
    if sessions:
        baselines += [SessionKnn(at_us=at_us), BasketCooccurrence(at_us=at_us)]
    return [*baselines, UserKnn(at_us=at_us)]


def fitted_rankers(baselines: list[Baseline], training: Sequences, n_items: int) -> dict[str, Ranker]:
    """Fit each baseline on ``training`` (V = ``n_items``) and wrap it: name -> ``Ranker``."""
    for baseline in baselines:
        baseline.fit(training, n_items)
    return {baseline.name: baseline_ranker(baseline, n_items) for baseline in baselines}
