"""Items that came after training, by the vectors of their encoders alone.

Shape letters: N items, D width of the item table.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bseq_plugin.data.events import ITEM
from bseq_plugin.data.item_vectors import build_item_encoders, encode_items, encoders_identity
from bseq_plugin.data.items import checked_items
from bseq_plugin.errors import UsageError
from bseq_plugin.model.encoded_items import EncodedItems
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.neighbours import NeighbourItems


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
    rows_ND: Tensor = fusion.rows_of(vectors_NE, model.item_table_VD, model.vocabulary.item_counts)
    return rows_ND


def with_new_items(model: InterestModel, items: pd.DataFrame, progress: bool = False) -> InterestModel:
    """The model with those of ``items`` that it does not have, ids ascending; itself if it has them all.

    An item of which nothing is known is left out. Raises as ``rows_of_items``.
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
    order = np.argsort(longer.vocabulary.item_ids, kind="stable")
    return longer.with_items(order)


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
