"""Items that came after training, by the vectors of their encoders alone.

Shape letters: N items, D width of the item table.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bseq_plugin.data.events import ITEM, Events
from bseq_plugin.data.item_vectors import build_item_encoders, encode_items, encoders_identity
from bseq_plugin.data.items import PopularityPrior, checked_items
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.errors import UsageError
from bseq_plugin.model.encoded_items import EncodedItems
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.neighbours import NeighbourItems, own_directions


@torch.no_grad()
def rows_of_items(model: InterestModel, items: pd.DataFrame, progress: bool = False) -> Tensor:
    """float32 [N, D], rows of the item table for the rows of an items table, as ``publish_delta`` takes them.

    Raises:
        UsageError: the model was trained without item encoders, or with other weights or options of theirs.
        SchemaError: a column is missing, an item is there twice.
    """
    fusion = _fusion(model)
    encoders = build_item_encoders(model.recipe)
    if encoders_identity(encoders) != fusion.vectors_identity:
        raise UsageError(
            f"the item encoders ({', '.join(model.recipe.item_encoders)}) give other vectors than those the model was "
            "trained with: their weights or their version changed; use the same weights, or train again"
        )
    checked_items(items, [column for encoder in encoders for column in encoder.columns])
    vectors_NE = torch.from_numpy(encode_items(encoders, items, progress))
    table_VD, counts_V, length = model.item_table_VD, model.vocabulary.item_counts, model.recipe.own_direction
    rows_ND: Tensor = fusion.rows_of(vectors_NE, table_VD, counts_V)
    if isinstance(fusion, NeighbourItems) and length > 0:
        rows_ND += length * own_directions(items[ITEM].tolist(), table_VD, counts_V) * rows_ND.any(1, keepdim=True)
    return rows_ND


def with_new_items(
    model: InterestModel, items: pd.DataFrame, progress: bool = False, log: Events | None = None
) -> InterestModel:
    """The model with those of ``items`` that it does not have, ids ascending; itself if it has them all.

    An item of which nothing is known is left out. Raises as ``rows_of_items``.

    Args:
        log: events that may have new items already: their popularity columns, if the model has any, are counted there,
            as of the end of training like those of the others. Without it nobody has had them yet.
    """
    _fusion(model)
    checked_items(items, [])
    new = items[model.vocabulary.item_rows(items[ITEM]) == 0] if len(items) else items
    rows_ND = rows_of_items(model, new, progress) if len(new) else torch.empty(0, model.recipe.vector_dim)
    known = rows_ND.any(1)
    if not bool(known.any()):
        return model
    n_priors = len(model.recipe.popularity_days)
    priors_NP = torch.zeros(int(known.sum()), n_priors) if n_priors else None  # nobody has had them yet
    longer = model.with_rows(new[ITEM].to_numpy()[known.numpy()], rows_ND[known], priors_NP)
    longer = longer.with_items(np.argsort(longer.vocabulary.item_ids, kind="stable"))
    return longer if log is None or not n_priors else with_popularity(longer, new[ITEM].to_numpy()[known.numpy()], log)


def with_popularity(model: InterestModel, item_ids: np.ndarray, log: Events) -> InterestModel:
    """The model with the popularity columns of these items, which it has, counted in a log."""
    sequences = Sequences.from_events(log, model.vocabulary)
    popularity = PopularityPrior(sequences, model.vocabulary.n_items, model.recipe.popularity_days)
    priors_VP = popularity.at((model.trained_until_us or 0) + 1)  # the instant of the other items' columns
    places = model.vocabulary.item_rows(item_ids)
    return model.with_rows(item_ids, model.item_table_VD[places], torch.from_numpy(priors_VP[places]))


def _fusion(model: InterestModel) -> EncodedItems | NeighbourItems:
    if model.recipe.item_attributes:
        raise UsageError(
            "new items can't be added to a model with item_attributes, whose vectors are part of its rows; give the "
            "columns to the item encoder 'columns' instead"
        )
    fusion = model.encoder.item_tower.encoded
    if fusion is None:
        raise UsageError(
            "the model was trained without item encoders, so an item that it has never seen has no vector; train with "
            "item_encoders, or leave the items table out"
        )
    return fusion
