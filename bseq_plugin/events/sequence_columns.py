"""One row a user with lists, the form of ``sequences.parquet``, as one row an event."""

from __future__ import annotations

from dataclasses import replace

from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.events.log_options import CREATED, EVENT_TYPE, ITEM, SESSION, TIME, USER, VALUE, LogOptions
from bseq_plugin.events.relation import Column, Relation, named

ON_DISK = ("item_ids", "timestamps", "event_types", "session_ids", "created_timestamps", "values")
LISTS = dict(zip((ITEM, TIME, EVENT_TYPE, SESSION, CREATED, VALUE), ON_DISK, strict=True))


def is_listed(columns: dict[str, Column]) -> bool:
    """Whether columns are those of ``sequences.parquet``."""
    return LISTS[ITEM] in columns and ITEM not in columns


def in_rows(relation: Relation, options: LogOptions) -> tuple[Relation, LogOptions]:
    """Return a relation with one row an event; of one that is so already, itself.

    Events without an id (null) are of items that the vocabulary lacked; they are no events of a log. Raises SchemaError
    for lists of unequal length, or a column that is no list.
    """
    if not is_listed(relation.columns) or options.source(ITEM) != ITEM:
        return relation, options
    user = options.source(USER)
    other = sorted(set(options.columns) - {USER})
    if other:
        raise UsageError(
            f"{relation.name} has one row a user, as sequences.parquet: {options.of_columns()} {', '.join(other)} "
            "means nothing; only user_id may be called something else"
        )
    if user not in relation.columns:
        raise SchemaError(f"{relation.name} lacks column {user!r}; found {list(relation.columns)}")
    lists = {name: relation.columns[on_disk] for name, on_disk in LISTS.items() if on_disk in relation.columns}
    for name, column in lists.items():
        if not column.type.endswith("]"):
            raise SchemaError(f"{relation.name}: column {LISTS[name]!r} has type {column.type}; give a list an user")
    _equal_lengths(relation, user, lists)
    inner = f"SELECT {relation.columns[user].sql} AS {USER}, {relation.place} AS bseq_user"
    inner += f", {relation.file or 'NULL'} AS bseq_from"
    inner += "".join(f", {column.sql} AS {name}" for name, column in lists.items()) + f" FROM {relation.source}"
    unnested = ", ".join(f"unnest({name}) AS {name}" for name in lists)
    # the place within a list, so that rows have an order whatever DuckDB does with them
    number = f"unnest(range(len({ITEM}))) AS bseq_nth"
    rows = f"(SELECT {USER}, bseq_user, bseq_from, {number}, {unnested} FROM ({inner}))"
    source = f"(SELECT * FROM {rows} WHERE {ITEM} IS NOT NULL)"
    kinds = relation.types_of(f"SELECT * FROM {source}")
    columns = {name: Column(named(name), kinds[name]) for name in (USER, *lists)}
    if options.timestamp_unit is None:
        options = replace(options, timestamp_unit="us")
    options = replace(options, columns={})
    place = "bseq_user * 4294967296::HUGEINT + bseq_nth"
    return (
        replace(
            relation,
            source=source,
            columns=columns,
            place=place,
            file=None if relation.file is None else "bseq_from",
            only_order=TIME not in lists,
        ),
        options,
    )


def _equal_lengths(relation: Relation, user: str, lists: dict[str, Column]) -> None:
    for name, column in lists.items():
        items = lists[ITEM].sql
        bad = f"{items} IS NULL OR len({column.sql}) IS DISTINCT FROM len({items})"
        query = f"SELECT {relation.columns[user].sql}, {relation.place} AS p FROM {relation.source} WHERE {bad}"
        found = relation.rows(f"{query} ORDER BY p LIMIT 1")
        if found:
            raise SchemaError(
                f"{relation.name}: lists of {LISTS[name]!r} and {LISTS[ITEM]!r} differ in length, first of user "
                f"{found[0][0]!r}"
            )
