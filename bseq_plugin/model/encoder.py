"""The encoder a TorchRec engineer embeds: ``KeyedJaggedTensor -> KeyedTensor``.

Its ``forward`` is traced by TorchRec's pipeline (it contains a sharded module), so it is a straight line; everything
that looks at data lives in the child modules, which are leaves of the trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor, KeyedTensor

from bseq_plugin.data.batches import EVENT
from bseq_plugin.data.event_features import TABLE_ROWS, EventInputs
from bseq_plugin.data.input_keys import InputKeys, check_features
from bseq_plugin.data.items import ItemAttributes, ItemVectors
from bseq_plugin.errors import RecipeError, UsageError
from bseq_plugin.events.events import EVENT_TYPE
from bseq_plugin.model.anchored import AnchoredInterests
from bseq_plugin.model.check_sharded import has_warned
from bseq_plugin.model.ensemble import Ensemble
from bseq_plugin.model.interests import MultiInterests
from bseq_plugin.model.items import InterestHead, ItemTower, score_vectors
from bseq_plugin.model.leaves import EventEmbedder, Readout, StateReader
from bseq_plugin.model.neighbours import NeighbourItems
from bseq_plugin.plugins import plugin_manager
from bseq_plugin.recipe.model import EncoderSettings, VectorSettings
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.schema.encoders import HistoryEncoder, SequenceEncoder
from bseq_plugin.schema.options import names_in, parse_options
from bseq_plugin.schema.packed import PackedEvents

ITEM_TABLE = "item"
FEATURE_ORDER = (EVENT_TYPE, *TABLE_ROWS)  # of the tables
NO_POPULARITY = (
    "objective.popularity_days is for bseq.train, which makes columns of popularity from its log; leave it out of the "
    "recipe of a host's encoder: recipe.replace(objective={'popularity_days': ()})"
)


class SequenceInterestEncoder(HistoryEncoder):
    """A TorchRec module of sharded tables, an event embedder, one sequence encoder part and a readout.

    Args:
        recipe: the sections ``encoder``, ``vectors``, ``events``, ``items`` and ``interests`` are used, and
            ``objective.popularity_days``.
        n_items: V; the item table has V + 1 rows, row 0 for unknown items.
        n_event_types: rows of the event-type table without its row 0; needed if the recipe reads event types
            (RecipeError without).
        attributes: item attributes to sum into the item rows, one for each of ``recipe.items.attributes`` (training; an
            exported encoder has them in its item table).
        item_vectors: what the recipe's item encoders say of the items (training), or only how wide that is (an exported
            encoder has it in its item table).
        item_keys: further keys whose ids are rows of the item table, looked up together with the history:
            ``("target", "negative")`` for a loss of one's own over ``interest_and_items``.
        keys: what a history's keys are called in the batch, where that is not their name here: ``{"event": "movie"}``.
        device: of the embedding tables; "meta" leaves them to the planner of ``DistributedModelParallel``.

    Input keys: ``event`` and those of ``recipe.events.features`` (int64 rows, oldest first, at most ``max_length`` a
    user), optionally ``timestamp`` (int64 microseconds), and ``session_number`` if the encoder reads sessions, as the
    *first* keys; ``history_features(sequences, recipe)`` makes them all.

    Attributes:
        has_learned: whether it has been trained, or has loaded weights.
    """

    def __init__(
        self,
        recipe: Recipe,
        n_items: int,
        n_event_types: int = 0,
        *,
        attributes: ItemAttributes | None = None,
        item_vectors: ItemVectors | int | None = None,
        item_keys: Sequence[str] = (),
        keys: Mapping[str, str] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.recipe, self.item_keys = recipe, names_in(item_keys, "item_keys")
        self.has_learned, self._has_warned = False, False
        part = build_encoder_part(recipe.encoder, recipe.vectors)
        if EVENT_TYPE in recipe.events.features and n_event_types < 1:
            raise RecipeError(
                "the recipe reads event types, but n_event_types = 0; say how many there are, or leave event_type out "
                "of events.features"
            )
        inputs = EventInputs.of(recipe.events, recipe.encoder)
        self.keys = InputKeys.of(inputs, keys, self.item_keys)
        tables = _tables(recipe, n_items, n_event_types, self.keys)
        self.embedding_collection = EmbeddingCollection(tables=tables, device=torch.device(device) if device else None)
        neighbours = _neighbour_items(recipe, item_vectors)
        self.item_tower = ItemTower(recipe.vectors.table_dim, attributes, recipe.vectors.init, neighbours)
        self.event_embedder = EventEmbedder(inputs, recipe.encoder.max_length, self.keys)
        self.rows = {key: (table.name, table.num_embeddings) for table in tables for key in table.feature_names}
        self.sequence_encoder = StateReader(part)
        n_priors = len(recipe.popularity_days)
        self.interest_head = InterestHead(recipe.vectors.table_dim, n_priors, recipe.vectors.similarity)
        self.multi_interests = _multi_interests(recipe)
        self.readout = Readout(recipe.interest_dim, recipe.interests_per_user)

    @property
    def width(self) -> int:
        """K * D."""
        return self.readout.width

    def forward(self, history: KeyedJaggedTensor) -> KeyedTensor:
        """Return ``{"user_interest": [B, K * D]}``, float32, D = ``recipe.interest_dim``, K =
        ``recipe.interests_per_user``.

        A user without events has the interest of a state of zeros: for inner-product scores without priors, zeros.
        """
        events, _ = self.look_up(history)
        interest: KeyedTensor = self.readout(self.interests(events))
        return interest

    def interest_and_items(self, features: KeyedJaggedTensor) -> tuple[KeyedTensor, dict[str, Tensor]]:
        """Return what ``forward`` does and, from the same look-up, ``[N, D]`` for each of ``item_keys``: float32, in
        the order of the key's ids, the vectors that an interest is multiplied with.

        So a host writes its own loss over targets and negatives: in-batch, sampled, or binary cross-entropy. A score is
        the inner product of an interest and a vector, and the score that a store serves (``bseq.publish``).

        Raises UsageError for a recipe with ``objective.popularity_days``: its interests are wider than the vectors.
        """
        if self.recipe.popularity_days:
            raise UsageError(NO_POPULARITY)
        events, rows = self.look_up(features)
        vectors = [score_vectors(row_ND, None, self.interest_head.cosine) for row_ND in rows]
        return self.readout(self.interests(events)), dict(zip(self.item_keys, vectors, strict=True))

    def look_up(self, features: KeyedJaggedTensor) -> tuple[PackedEvents, list[Tensor]]:
        """Return the packed events, and the rows ``[N, D]`` of each of ``item_keys``."""
        if isinstance(features, KeyedJaggedTensor):  # no proxy of a trace
            # on a GPU it would wait for the device, and a compiled graph can't look at numbers
            if features.device().type == "cpu" and not torch.compiler.is_compiling():
                self.check(features)
            self.has_learned = self.has_learned or (self.training and torch.is_grad_enabled())
            self._has_warned = self._has_warned or has_warned(self)
        looked_up = self.embedding_collection(features)
        rows = self.item_tower(looked_up, features, [self.keys[EVENT], *self.item_keys])
        events = self.event_embedder(rows[0], looked_up, features)
        return events, [rows[place + 1] for place in range(len(self.item_keys))]

    def check(self, features: KeyedJaggedTensor) -> None:
        """Raise UsageError if the encoder can't read a batch: a key that is not there, an id that is no row of its
        table, a history that is too long, an event without its feature, or no user at all.

        Every forward on a CPU does. In a pipeline TorchRec starts the look-up of a batch before that, and its own error
        may come first: then ask here, in the data loader.
        """
        check_features(features, self.rows, self.keys, self.event_embedder.max_length)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.has_learned = True

    def interests(self, events: PackedEvents, rows_Q: Tensor | None = None) -> Tensor:
        """Return ``[Q * K, D]`` of the packed rows ``rows_Q``, or of all users; with K > 1 rows are newest events.

        A straight line too, whatever the batch holds.
        """
        return read_interests(self.sequence_encoder, self.multi_interests, self.interest_head, events, rows_Q)


def read_interests(
    sequence_encoder: StateReader,
    multi_interests: MultiInterests | AnchoredInterests | None,
    interest_head: InterestHead,
    events: PackedEvents,
    rows_Q: Tensor | None = None,
) -> Tensor:
    """Read the interests off packed events; see ``SequenceInterestEncoder.interests``."""
    interests: Tensor
    if isinstance(multi_interests, MultiInterests):
        interests = interest_head(multi_interests(events, sequence_encoder(events, None, True), rows_Q))
        return interests
    interests = interest_head(sequence_encoder(events, rows_Q))
    return interests if multi_interests is None else multi_interests(events, interests, rows_Q)


def build_encoder_part(encoder: EncoderSettings, vectors: VectorSettings) -> SequenceEncoder:
    """Return the named encoder, ``ensemble`` times. Raises UsageError (unknown name) or RecipeError (bad options)."""
    part = plugin_manager().part("encoder", encoder.name)
    options = parse_options(part.Options, encoder.options, f"options of encoder {encoder.name!r}")
    parts: list[SequenceEncoder] = [
        part(vectors.dim, encoder.max_length, encoder.dropout, options) for _ in range(vectors.ensemble)
    ]
    if not parts[0].reads_dropout and encoder.dropout not in (0.0, EncoderSettings().dropout):
        raise RecipeError(
            f"encoder.dropout = {encoder.dropout}: encoder {encoder.name!r} with these options leaves nothing out; set "
            "encoder.dropout = 0"
        )
    return parts[0] if len(parts) == 1 else Ensemble(parts)


def _multi_interests(recipe: Recipe) -> MultiInterests | AnchoredInterests | None:
    interests = recipe.interests
    if interests.kind == "one":
        return None
    if interests.anchored:
        return AnchoredInterests(recipe.vectors.dim, recipe.interest_dim, interests.n, interests.method)
    return MultiInterests(recipe.vectors.dim, interests.n, interests.method)


def _neighbour_items(recipe: Recipe, vectors: ItemVectors | int | None) -> NeighbourItems | None:
    if not recipe.items.encoders:
        return None
    if vectors is None:
        raise RecipeError(
            f"the recipe has items.encoders = {[part.name for part in recipe.items.encoders]}; give their item_vectors"
        )
    known = None if isinstance(vectors, int) else vectors
    width = vectors if isinstance(vectors, int) else vectors.vectors_VE.shape[1]
    return NeighbourItems(width, known)


def _tables(recipe: Recipe, n_items: int, n_event_types: int, keys: InputKeys) -> list[EmbeddingConfig]:
    rows = {ITEM_TABLE: (n_items + 1, [keys[EVENT], *keys.items], recipe.vectors.init)}
    # context tables start at zero: an event is its item until the data says more
    for name in sorted(set(recipe.events.features), key=FEATURE_ORDER.index):
        rows[name] = (n_event_types + 1 if name == EVENT_TYPE else TABLE_ROWS[name], [keys[name]], 0.0)
    return [
        EmbeddingConfig(
            name=name,
            num_embeddings=count,
            embedding_dim=recipe.vectors.table_dim,
            feature_names=keys,
            init_fn=partial(nn.init.normal_, std=std),
        )
        for name, (count, keys, std) in rows.items()
    ]
