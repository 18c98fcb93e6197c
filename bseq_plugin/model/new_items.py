"""Items that came after training, by the vectors of their encoders alone.

Shape letters: N items, D width of the item table.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bseq_plugin.data.items import PopularityPrior, build_item_encoders, check_items, encode_items, encoders_identity
from bseq_plugin.errors import UsageError
from bseq_plugin.events.events import ITEM, Events
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.neighbours import NeighbourItems, directed


@torch.no_grad()
def rows_of_items(model: InterestModel, items: pd.DataFrame, progress: bool = False) -> Tensor:
    """Return float32 [N, D], rows of the item table for the rows of an items table, as ``publish_delta`` takes them.

    Raises:
        UsageError: the model was trained without item encoders, or with other weights or options of theirs.
        SchemaError: a column is missing, an item is there twice.
    """
    neighbours = _neighbours(model)
    encoders = build_item_encoders(model.recipe.items.encoders)
    if encoders_identity(encoders) != neighbours.vectors_identity:
        names = ", ".join(settings.name for settings in model.recipe.items.encoders)
        raise UsageError(
            f"the item encoders ({names}) give other vectors than those the model was trained with: their weights or "
            "their version changed; use the same weights, or train again"
        )
    check_items(items, [column for encoder in encoders for column in encoder.columns])
    vectors_NE = torch.from_numpy(encode_items(encoders, items, progress))
    table_VD, counts_V, length = model.item_table_VD, model.vocabulary.item_counts, model.recipe.items.own_direction
    rows_ND = neighbours.rows_of(vectors_NE, table_VD, counts_V)
    return directed(rows_ND, items[ITEM].tolist(), table_VD, counts_V, length)


def with_new_items(
    model: InterestModel, items: pd.DataFrame, progress: bool = False, log: Events | None = None
) -> InterestModel:
    """Return the model with those of ``items`` that it does not have, ids ascending; itself if it has them all.

    An item of which nothing is known is left out. Raises as ``rows_of_items``.

    Args:
        log: all events by now, which may have new items already: popularity columns, if the model has any, are those
            at its end, for all items. The model then knows of these events, and ``trained_until_us`` says so. Without
            it nobody has had the new items yet.
    """
    _neighbours(model)
    check_items(items, [])
    new = items[model.vocabulary.item_rows(items[ITEM]) == 0] if len(items) else items
    rows_ND = rows_of_items(model, new, progress) if len(new) else torch.empty(0, model.recipe.vectors.table_dim)
    known = rows_ND.any(1)
    n_priors, longer = len(model.recipe.popularity_days), model
    if bool(known.any()):
        priors_NP = torch.zeros(int(known.sum()), n_priors) if n_priors else None
        longer = model.with_rows(new[ITEM].to_numpy()[known.numpy()], rows_ND[known], priors_NP)
        longer = longer.with_items(np.argsort(longer.vocabulary.item_ids, kind="stable"))
    return longer if log is None or not n_priors else with_popularity(longer, log)


def with_popularity(model: InterestModel, log: Events) -> InterestModel:
    """Return the model with the popularity of all its items at the end of a log, or of training if that is later."""
    sequences = Sequences.from_events(log, model.vocabulary)
    popularity = PopularityPrior(sequences, model.vocabulary.n_items, model.recipe.popularity_days)
    newest_us = max(model.trained_until_us or 0, int(log.frame["timestamp"].max()) if len(log) else 0)
    priors_VP = torch.from_numpy(popularity.at(newest_us + 1))
    return replace(model, item_priors_VP=priors_VP, trained_until_us=newest_us)


def _neighbours(model: InterestModel) -> NeighbourItems:
    neighbours: NeighbourItems | None = model.encoder.item_tower.encoded
    if neighbours is None:
        raise UsageError(
            "the model was trained without item encoders, so an item that it has never seen has no vector; train with "
            "items.encoders, or leave the items table out"
        )
    return neighbours
