"""A log that is being read: what stands in it by our names, what is wrong with it, and what was left out of it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.log_options import ITEM, SESSION, USER, VALUE, LogOptions
from bseq_plugin.events.recognise import recognise
from bseq_plugin.events.relation import Column, Relation, named, quoted, told
from bseq_plugin.events.rules import Check, Rules, require_columns
from bseq_plugin.events.sequence_columns import in_rows
from bseq_plugin.events.where import where_columns

PLACE, FILE = "bseq_place", "bseq_file"


class Log:
    """Events of a relation as the options want them.

    Attributes:
        names: our columns, in one order.
        rows_read, left_out: rows of the source, and of these by option.
        n_events: rows that pass, before equal ones and users are left out.
    """

    def __init__(self, relation: Relation, options: LogOptions) -> None:
        """Look at all rows once or twice. Raises SchemaError for the first rule that one of them breaks."""
        if options.timestamp_unit is None and relation.unit is not None:
            options = replace(options, timestamp_unit=relation.unit)
        relation, options = in_rows(relation, options)
        self.relation, self.options = relation, options
        self.names = require_columns(relation, options)
        self.extra = where_columns(relation, options)
        self.rules = self._rules()
        self.rows_read, self.n_events, self.left_out = self._checked()

    def events(self, place: bool = False, limited: bool = True) -> str:
        """Return a query of the events by our names, rows in the order of the log; with ``bseq_place`` if wanted."""
        values = ", ".join(f"{sql} AS {name}" for name, sql in self.rules.values.items())
        options, places = self.options, f", {PLACE}" if place or self.options.on_duplicate == "drop" else ""
        query = f"SELECT {values}{places} FROM {self._kept(bool(places))}"
        if options.on_duplicate == "drop":
            equal = ", ".join(self.rules.values)
            query = f"SELECT * FROM ({query}) QUALIFY row_number() OVER (PARTITION BY {equal} ORDER BY {PLACE}) = 1"
        if limited and options.limit_users is not None:
            drawn = f"SELECT {USER} FROM (SELECT DISTINCT {USER} FROM ({query})) "
            drawn += f"ORDER BY md5(CAST({USER} AS VARCHAR)), {USER} LIMIT {options.limit_users}"
            query = f"SELECT * FROM ({query}) WHERE {USER} IN ({drawn})"
        if place or not places:
            return query
        return f"SELECT {', '.join(self.names)} FROM ({query}) ORDER BY {PLACE}"

    def _rules(self) -> Rules:
        """What our columns hold, from one look at those whose type the source does not say."""
        options = self.options
        columns = {name: Column(f"bseq_{name}", self._column(name).type) for name in self.names}
        ids = {name: options.source(name) for name in self.names if name in (USER, ITEM, SESSION)}
        typed = recognise(self.relation, columns, self._kept(False, nulls=True), ids)
        rules = Rules(options, self.relation)
        for name in self.names:
            rules.add(name, typed[name])
        if options.time_zone is not None and not rules.zone_used:
            raise SchemaError(
                f"{options.told('time_zone', options.time_zone)}: the times of {self.relation.name} have a zone or an "
                "offset already, or are integers; leave it out"
            )
        return rules

    def _column(self, name: str) -> Column:
        return self.relation.columns[self.options.source(name)]

    def _raw(self, place: bool, where: bool = True) -> str:
        """Rows of the source, our columns as bseq_NAME beside those that ``where`` reads."""
        relation = self.relation
        chosen = [f"{self._column(name).sql} AS bseq_{name}" for name in self.names]
        chosen += [f"{sql} AS {named(name)}" for name, sql in self.extra.items()]
        if place:
            chosen += [f"{relation.place} AS {PLACE}", f"{relation.file or 'NULL'} AS {FILE}"]
        rows = f"(SELECT {', '.join(chosen)} FROM {relation.source})"
        return f"(SELECT * FROM {rows} WHERE ({self.options.where}\n))" if where and self.options.where else rows

    def _kept(self, place: bool, nulls: bool = False) -> str:
        """Rows that are left by ``where`` and ``on_null``."""
        rows = self._raw(place)
        return f"(SELECT * FROM {rows} WHERE {self._whole()})" if self.options.on_null == "drop" and not nulls else rows

    def _whole(self) -> str:
        return " AND ".join(f"bseq_{name} IS NOT NULL" for name in self.names if name != VALUE)

    def _checked(self) -> tuple[int, int, dict[str, int]]:
        """The number of rows, of those that pass (before duplicates and users are left out), and of those left out."""
        relation, options, checks = self.relation, self.options, self.rules.checks
        wanted = "".join(f", count_if({check.bad})" for check in checks)
        [(n_kept, *bad)] = relation.rows(f"SELECT count(*){wanted} FROM {self._kept(False)}")
        left: dict[str, int] = {}
        n_rows = n_where = n_kept
        if options.where is not None or options.on_null == "drop":
            [(n_rows,)] = relation.rows(f"SELECT count(*) FROM {relation.source}")
            [(n_where,)] = relation.rows(f"SELECT count(*) FROM {self._raw(False)}")
        if options.where is not None:
            left["where"] = n_rows - n_where
        if options.on_null == "drop":
            left["on_null"] = n_where - n_kept
        for check, count in zip(checks, bad, strict=True):
            if count:
                raise SchemaError(self._told(check, count))
        if not n_kept:
            what = "is empty" if not n_rows else f"is empty: its {n_rows} rows are left out by {' and '.join(left)}"
            raise SchemaError(f"{relation.name}: the log {what}: there is nothing to learn from or to look up")
        if options.on_duplicate == "drop":
            [(n_single,)] = relation.rows(f"SELECT count(*) FROM ({self.events(limited=False)})")
            left["on_duplicate"] = n_kept - n_single
        return int(n_rows), int(n_kept), left

    def _told(self, check: Check, count: int) -> str:
        """The rule that a row breaks, with the first such row."""
        query = (
            f"SELECT {check.shown}, {PLACE}, {FILE} FROM {self._kept(True)} WHERE {check.bad} ORDER BY {PLACE} LIMIT 1"
        )
        [(value, place, file)] = self.relation.rows(query)
        shown = repr(value) if len(str(value)) < 60 else repr(str(value)[:57] + "...")
        words = {"column": repr(check.column), "n": str(count), "row": self._row(place, file), "value": _plain(shown)}
        return re.sub(r"\{(column|n|row|value)\}", lambda found: words[found.group(1)], check.told)

    def _row(self, place: int, file: str | None) -> str:
        """A row as a person finds it: counted from 0 in its file, without the header."""
        relation = self.relation
        if file is None:
            return f"row {place} (counted from 0)"
        places = f"(SELECT {relation.place} AS place, {relation.file} AS file FROM {relation.source})"
        [(before,)] = relation.rows(f"SELECT count(*) FROM {places} WHERE file = {quoted(file)} AND place < {place}")
        return f"row {before} of {file} (counted from 0)"


def _plain(shown: str) -> str:
    """A number without the quotes of its text."""
    return shown[1:-1] if shown[1:-1].lstrip("-").isdigit() else shown


def events_table(log: Log) -> Any:
    """Return the events as an Arrow table."""
    return told(lambda: log.relation.connection.sql(log.events()).to_arrow_table(), log.relation.name)
