"""What an encoder's input is called in somebody's batches, and whether a batch can be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torchrec import KeyedJaggedTensor

from bseq_plugin.data.batches import EVENT, SESSION_NUMBER, TIMESTAMP
from bseq_plugin.data.event_features import EventInputs
from bseq_plugin.data.jagged import check_ids_and_lengths, require_jagged
from bseq_plugin.errors import UsageError


@dataclass(frozen=True)
class InputKeys:
    """The keys of a batch that an encoder reads.

    Attributes:
        names: our name -> the key, of the event and its features, times and session numbers.
        features: our names of the embedded features of an event.
        items: further keys whose ids are rows of the item table.
    """

    names: Mapping[str, str]
    features: tuple[str, ...] = ()
    items: tuple[str, ...] = ()

    @classmethod
    def of(cls, inputs: EventInputs, names: Mapping[str, str] | None, items: Sequence[str]) -> InputKeys:
        """Raise UsageError for what is no mapping or no list of keys, for a name that the encoder does not read, and
        for a key that is given twice.
        """
        names = {} if names is None else names
        if not isinstance(names, Mapping) or not all(isinstance(key, str) for key in names.values()):
            raise UsageError(f"keys = {names!r}; give a mapping from our names to yours: keys={{'event': 'movie'}}")
        if isinstance(items, str) or not isinstance(items, Sequence) or not all(isinstance(key, str) for key in items):
            raise UsageError(f"item_keys = {items!r}; give a list of keys of the batch: item_keys=['target']")
        known = (EVENT, *inputs.features, TIMESTAMP, SESSION_NUMBER)
        if stray := sorted(set(names) - set(known)):
            raise UsageError(f"keys = {dict(names)}: the encoder reads no {stray[0]!r}; it reads {list(known)}")
        named = {name: names.get(name, name) for name in dict.fromkeys(known)}
        read_as: dict[str, list[str]] = {}
        for name, key in [*named.items(), *(("an item key", key) for key in items)]:
            read_as.setdefault(key, []).append(name)
        for key, twice in read_as.items():
            if len(twice) > 1:
                raise UsageError(
                    f"key {key!r} is read as {' and as '.join(twice)} (keys, item_keys); give each a key of its own"
                )
        return cls(named, inputs.features, tuple(items))

    def __getitem__(self, name: str) -> str:
        return self.names[name]

    def values(self, features: KeyedJaggedTensor, name: str) -> Tensor | None:
        """Return the values of one of ours, None if the batch does not have it."""
        key = self.names.get(name, name)
        return features[key].values() if key in features.keys() else None  # noqa: SIM118  # no mapping


def check_features(
    features: KeyedJaggedTensor, rows: Mapping[str, tuple[str, int]], keys: InputKeys, max_length: int
) -> None:
    """Raise UsageError if a batch can't be looked up.

    Args:
        rows: key -> (its table, the rows of that).
        max_length: events of a history that are read.
    """
    require_jagged(features, "a history")
    check_ids_and_lengths(features)
    there = features.keys()
    if missing := [key for key in rows if key not in there]:
        _refuse_missing(missing[0], there, list(rows), keys)
    if features.stride() == 0:
        raise UsageError("the batch has no users (stride 0), which TorchRec can't look up; leave it out")
    for key, (table, n_rows) in rows.items():
        ids = features[key].values()
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= n_rows):
            _refuse_id(features, key, table, n_rows)
    lengths_B = features[keys[EVENT]].lengths()
    if int(lengths_B.max()) > max_length:
        raise UsageError(
            f"key {keys[EVENT]!r}: a history has {int(lengths_B.max())} events, the encoder reads {max_length} "
            "(encoder.max_length): cut histories to the latest events first (bseq.latest_events, Sequences.latest)"
        )
    for name in (*keys.features, TIMESTAMP, SESSION_NUMBER):
        if keys[name] in there and not bool((features[keys[name]].lengths() == lengths_B).all()):
            raise UsageError(f"key {keys[name]!r} does not have a value for each event of key {keys[EVENT]!r}")


def _refuse_id(features: KeyedJaggedTensor, key: str, table: str, n_rows: int) -> None:
    jagged = features[key]
    place = int(((jagged.values() < 0) | (jagged.values() >= n_rows)).nonzero()[0])
    user = int((jagged.offsets()[1:] <= place).sum())
    raise UsageError(
        f"key {key!r}, user {user} of the batch: {int(jagged.values()[place])} is no row of table {table!r}, which has "
        f"rows 0 to {n_rows - 1}; row 0 is for unknown ids"
    )


def _refuse_missing(key: str, there: list[str], read: list[str], keys: InputKeys) -> None:
    if key in keys.items:
        raise UsageError(
            f"the batch has no key {key!r}, one of the encoder's item_keys; it has {there}. In a batch without such "
            "items, as in serving, the key is there too, with a length of 0 for every user"
        )
    raise UsageError(
        f"the batch has no key {key!r}; it has {there}, the encoder reads {read}: name them so, or say what they are "
        "called, SequenceInterestEncoder(keys={'event': ...})"
    )
