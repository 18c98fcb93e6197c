"""Which floors a log is measured against."""

from __future__ import annotations

from bseq_plugin.data.sequences import Sequences
from bseq_plugin.evaluation.baselines import RECENT_DAYS, Floor, PersonalFrequency, Popularity
from bseq_plugin.evaluation.neighbour_baselines import BasketCooccurrence, SessionKnn, TransitionGraph, UserKnn
from bseq_plugin.evaluation.rankers import Ranker, floor_ranker

HALF_LIFE_DAYS = 120


def default_floors(training: Sequences, until_us: int | None = None) -> list[Floor]:
    """The floors that this log can carry, not yet fitted.

    Always: popularity, personal frequency, transition graph, user kNN. With times: popularity of the last 28 days and
    personal frequency with a half life of 120 days. With sessions: session kNN and basket co-occurrence; there the
    graph does without a second hop, which only helps where histories are short (measured on both kinds of log).

    Args:
        training: what the floors will be fitted on.
        until_us: the cut, from which ages are counted; by default just after the newest event.
    """
    timed, sessions = training.timestamps is not None, training.session_ids is not None
    floors: list[Floor] = [Popularity(until_us=until_us)]
    if timed:
        floors.append(Popularity(RECENT_DAYS, until_us))
    floors.append(PersonalFrequency(until_us=until_us))
    if timed:
        floors.append(PersonalFrequency(HALF_LIFE_DAYS, until_us))
    floors.append(default_graph(training, until_us))
    if sessions:
        floors += [SessionKnn(until_us=until_us), BasketCooccurrence(until_us=until_us)]
    return [*floors, UserKnn(until_us=until_us)]


def default_graph(training: Sequences, until_us: int | None = None) -> TransitionGraph:
    """The item-transition graph for this log, not yet fitted; see ``default_floors``."""
    return TransitionGraph(second_hop=0.0 if training.session_ids is not None else 0.15, until_us=until_us)


def fitted_rankers(floors: list[Floor], training: Sequences, n_items: int) -> dict[str, Ranker]:
    """Fit each floor on ``training`` (V = ``n_items``) and wrap it: name -> ``Ranker``."""
    for floor in floors:
        floor.fit(training, n_items)
    return {floor.name: floor_ranker(floor, n_items) for floor in floors}
