"""The encoder a TorchRec engineer embeds: ``KeyedJaggedTensor -> KeyedTensor``.

Its ``forward`` is traced by TorchRec's pipeline (it contains a sharded module), so it is a straight line; everything
that looks at data lives in the child modules, which are leaves of the trace.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, JaggedTensor, KeyedJaggedTensor, KeyedTensor

from bseq_plugin.data.batches import EVENT, NEGATIVE, SESSION_NUMBER, TARGET, TIMESTAMP
from bseq_plugin.data.event_features import TABLE_ROWS, EventInputs
from bseq_plugin.data.items import ItemAttributes, ItemVectors
from bseq_plugin.errors import PluginError, RecipeError
from bseq_plugin.events.events import EVENT_TYPE
from bseq_plugin.model.anchored import AnchoredInterests
from bseq_plugin.model.ensemble import Ensemble
from bseq_plugin.model.interests import MultiInterests
from bseq_plugin.model.items import InterestHead, ItemTower
from bseq_plugin.model.neighbours import NeighbourItems
from bseq_plugin.plugins import plugin_manager
from bseq_plugin.recipe.model import EncoderSettings, VectorSettings
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.schema.encoders import USER_INTEREST, HistoryEncoder, SequenceEncoder
from bseq_plugin.schema.options import parse_options
from bseq_plugin.schema.packed import PackedEvents

ITEM_TABLE = "item"
FEATURE_ORDER = (EVENT_TYPE, *TABLE_ROWS)  # of the tables


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
        training_keys: look up ``target`` and ``negative`` in the item table too (training).
        device: of the embedding tables; "meta" leaves them to the planner of ``DistributedModelParallel``.

    Input keys: ``event`` and those of ``recipe.events.features`` (int64 rows, oldest first, at most ``max_length`` a
    user), optionally ``timestamp`` (int64 microseconds), and ``session_number`` if the encoder reads sessions, as the
    *first* keys; ``history_features(sequences, recipe)`` makes them all.
    """

    def __init__(
        self,
        recipe: Recipe,
        n_items: int,
        n_event_types: int = 0,
        *,
        attributes: ItemAttributes | None = None,
        item_vectors: ItemVectors | int | None = None,
        training_keys: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        part = build_encoder_part(recipe.encoder, recipe.vectors)
        if EVENT_TYPE in recipe.events.features and n_event_types < 1:
            raise RecipeError(
                "the recipe reads event types, but n_event_types = 0; say how many there are, or leave event_type out "
                "of events.features"
            )
        tables = _tables(recipe, n_items, n_event_types, training_keys)
        self.embedding_collection = EmbeddingCollection(tables=tables, device=torch.device(device) if device else None)
        neighbours = _neighbour_items(recipe, item_vectors)
        self.item_tower = ItemTower(recipe.vectors.table_dim, attributes, recipe.vectors.init, neighbours)
        self.event_embedder = EventEmbedder(EventInputs.of(recipe.events, recipe.encoder), recipe.encoder.max_length)
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
        looked_up = self.embedding_collection(history)
        (item_TD,) = self.item_tower(looked_up, history, [EVENT])
        events = self.event_embedder(item_TD, looked_up, history)
        interest: KeyedTensor = self.readout(self.interests(events))
        return interest

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


class StateReader(nn.Module):
    """The sequence encoder part, asked for some states only; a leaf of the trace."""

    def __init__(self, part: SequenceEncoder) -> None:
        super().__init__()
        self.part = part

    def forward(
        self, events: PackedEvents, rows_Q: Tensor | None = None, every: bool = False, masked: bool = False
    ) -> Tensor:
        """Return ``[Q, D]``, the states of ``rows_Q``, with ``masked`` those in their places; with ``every`` ``[T,
        D]``, all; else ``[B, D]``, each user's newest, zeros for one without events.
        """
        if masked and rows_Q is not None:
            return self._checked(self.part.masked_states_at(events, rows_Q), len(rows_Q), events)
        if every:
            return self._states(events, None)
        if rows_Q is not None:
            return self._states(events, rows_Q)
        active = events.lengths_B > 0
        if events.longest is not None:  # there is an event, or row 0 could not be read for users without
            states_BD = self._states(events, (events.offsets_B1[1:] - 1).clamp_min(0))
            return torch.where(active[:, None], states_BD, 0.0)
        states_BD = events.x_TD.new_zeros(events.n_users, events.x_TD.shape[1])
        if not bool(active.any()):
            return states_BD
        states_BD[active] = self._states(events, events.offsets_B1[1:][active] - 1)
        return states_BD

    def _states(self, events: PackedEvents, rows_Q: Tensor | None) -> Tensor:
        if rows_Q is None:
            return self._checked(self.part(events), events.x_TD.shape[0], events)
        return self._checked(self.part.states_at(events, rows_Q), rows_Q.shape[0], events)

    def _checked(self, states_QD: object, n_rows: int, events: PackedEvents) -> Tensor:
        """Check the states of the part, which may be a plugin's: a wrong width would surface far from here."""
        wanted = (n_rows, events.x_TD.shape[1])
        if not isinstance(states_QD, Tensor) or states_QD.shape != wanted:
            given = tuple(states_QD.shape) if isinstance(states_QD, Tensor) else type(states_QD).__name__
            raise PluginError(
                f"encoder {self.part.name!r} gave states {given}; wanted a float tensor {wanted}: repair the plugin it "
                "comes from"
            )
        return states_QD


class EventEmbedder(nn.Module):
    """Sums the looked-up vectors of an event: its item's and those of its features (see ``data.event_features``)."""

    def __init__(self, inputs: EventInputs, max_length: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.max_length = max_length

    def forward(self, item_TD: Tensor, looked_up: dict[str, JaggedTensor], history: KeyedJaggedTensor) -> PackedEvents:
        """Return the packed events. Raises ValueError if a history is longer than ``max_length``."""
        event = looked_up[EVENT]
        x_TD = item_TD
        for name in self.inputs.features:
            x_TD = x_TD + looked_up[name].values()
        lengths_B = event.lengths().to(torch.int64)
        if len(lengths_B) and int(lengths_B.max()) > self.max_length:
            raise ValueError(
                f"a history has {int(lengths_B.max())} events, the encoder reads {self.max_length} "
                "(encoder.max_length): cut histories to the latest events first (Sequences.latest)"
            )
        offsets_B1 = torch.nn.functional.pad(lengths_B.cumsum(0), (1, 0))
        keys = history.keys()
        timestamps_T = history[TIMESTAMP].values() if TIMESTAMP in keys else None
        event_types_T = history[EVENT_TYPE].values() if EVENT_TYPE in keys else None
        sessions_T = history[SESSION_NUMBER].values() if SESSION_NUMBER in keys else None
        return PackedEvents(x_TD, offsets_B1, timestamps_T, event_types_T, sessions_T)


class Readout(nn.Module):
    """A module that makes the KeyedTensor; one of its own because the trace can't build it."""

    def __init__(self, dim: int, n_interests: int) -> None:
        super().__init__()
        self.width = n_interests * dim

    def forward(self, interests_ND: Tensor) -> KeyedTensor:
        """Return ``{"user_interest": [B, K * D]}`` of ``[B * K, D]``."""
        values = interests_ND.reshape(-1, self.width)
        return KeyedTensor(keys=[USER_INTEREST], length_per_key=[self.width], values=values)


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


def _tables(recipe: Recipe, n_items: int, n_event_types: int, training_keys: bool) -> list[EmbeddingConfig]:
    item_keys = [EVENT, TARGET, NEGATIVE] if training_keys else [EVENT]
    rows = {ITEM_TABLE: (n_items + 1, item_keys, recipe.vectors.init)}
    # context tables start at zero: an event is its item until the data says more
    for name in sorted(set(recipe.events.features), key=FEATURE_ORDER.index):
        rows[name] = (n_event_types + 1 if name == EVENT_TYPE else TABLE_ROWS[name], [name], 0.0)
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
