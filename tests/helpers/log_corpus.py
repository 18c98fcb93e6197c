"""Some hundred small logs as real systems write them, each with the events that stand in it, or why it is refused.

The events are constructed here, in Python; no reader had a part in them. ``python tests/helpers/log_corpus.py DIR``
writes all files, to be looked at.
"""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

START = 1_600_000_000  # 2020-09-13T12:26:40Z
US = 1_000_000
Row = tuple  # (user, item, microseconds) and what else a case has


@dataclass(frozen=True)
class Case:
    """``write(folder)`` gives the source; ``events`` are rows in order, or ``error`` a pattern of the message."""

    name: str
    write: Callable[[Path], Path | str]
    events: list[Row] | None = None
    error: str | None = None
    how: dict[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ("user_id", "item_id", "timestamp")


IDS = {
    "ints": ([1, 2, 1, 3], [10, 0, 10, 2**63 - 1]),
    "text": (["a", "b", "a", "c"], ["x 1", "NA", "null", "None"]),
    "zeros": (["007", "7", "07", "7"], ["1", "01", "2", "3"]),
    "unicode": (["é", "e\u0301", "日本", "🥖"], ["\u200ba", "[red]x[/red]", ":smile:", "\\N"]),
    "quotes": (["'13'", "a'b", "''", "`x`"], ['5" disc', "a;b", "#1", "-"]),
    "signs": (["+5", "5", "5", "6"], ["1e5", "0x1f", "1_000", "5"]),
    "large": ([10**18, 5, 5, 6], [str(10**19), "5", "6", "7"]),
    "spaces": ([" 36", "36", "36 ", "36"], ["a b", "a\u00a0b", "a  b", "ab"]),
}
SECONDS = [START, START + 60, START + 60, START + 3600]


def events_of(ids: str) -> list[Row]:
    return [(u, i, t * US) for u, i, t in zip(*IDS[ids], SECONDS, strict=True)]


def iso(seconds: int, form: str, hours: int = 0) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).astimezone(dt.timezone(dt.timedelta(hours=hours))).strftime(form)


def table_text(rows: list[list[Any]], separator: str = ",", quoting: int = csv.QUOTE_MINIMAL, end: str = "\n") -> str:
    out = io.StringIO()
    mark = None if quoting == csv.QUOTE_NONE else '"'
    csv.writer(out, delimiter=separator, quoting=quoting, lineterminator=end, quotechar=mark).writerows(rows)
    return out.getvalue()


def rows_of(ids: str, times: list[Any] = SECONDS) -> list[list[Any]]:
    return [["user_id", "item_id", "timestamp"], *map(list, zip(*IDS[ids], times, strict=True))]


def put(name: str, content: bytes | str, encoding: str = "utf-8") -> Callable[[Path], Path]:
    data = content.encode(encoding) if isinstance(content, str) else content

    def write(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith(".gz"):
            path.write_bytes(gzip.compress(data))
        elif name.lower().endswith(".zst"):
            path.write_bytes(pa.Codec("zstd").compress(data, asbytes=True))
        else:
            path.write_bytes(data)
        return path

    return write


def several(source: str, *writers: Callable[[Path], Path]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        for writer in writers:
            writer(folder)
        return str(folder / source)

    return write


def parquet(name: str = "log.parquet", **columns: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        return path

    return write


def csv_cases() -> list[Case]:
    unit, cases = {"timestamp_unit": "s"}, []
    ends = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}
    for ids, (end_name, end), quoting in itertools.product(IDS, ends.items(), (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)):
        text = table_text(rows_of(ids), quoting=quoting, end=end)
        cases.append(Case(f"csv-{ids}-{end_name}-{quoting}", put("log.csv", text), events_of(ids), how=unit))
    for separator, ids in itertools.product([";", "\t", "|"], IDS):
        text = table_text(rows_of(ids), separator)
        cases.append(Case(f"csv-{ord(separator)}-{ids}", put("log.csv", text), events_of(ids), how=unit))
    for ending in ("CSV", "csv.gz", "CSV.GZ", "csv.zst"):
        cases.append(
            Case(f"csv-{ending}", put(f"log.{ending}", table_text(rows_of("text"))), events_of("text"), how=unit)
        )
    for encoding in ("utf-8-sig", "utf-16"):
        content = table_text(rows_of("unicode"))
        cases.append(Case(f"csv-{encoding}", put("log.csv", content, encoding), events_of("unicode"), how=unit))
    for name in ("p*.csv", "log[1].csv", "what?.csv", "it's.csv", "a b é.csv"):
        cases.append(Case(f"csv-name-{name}", put(name, table_text(rows_of("ints"))), events_of("ints"), how=unit))
    inside = [["user_id", "item_id", "timestamp"], ["a,b", 'say "hi"', START], ["line\nbreak", "semi;colon", START + 1]]
    wanted = [(u, i, t * US) for u, i, t in inside[1:]]
    cases.append(Case("csv-inside-quotes", put("log.csv", table_text(inside)), wanted, how=unit))
    plain = table_text(rows_of("ints"))
    cases += [
        Case("csv-no-last-end", put("log.csv", plain.rstrip("\n")), events_of("ints"), how=unit),
        Case("csv-blank-lines", put("log.csv", plain.replace("\n", "\n\n")), events_of("ints"), how=unit),
        Case("csv-quoted-names", put("log.csv", plain.replace("user_id", '"user_id"')), events_of("ints"), how=unit),
        Case("csv-trailing-comma", put("log.csv", plain.replace("\n", ",\n")), events_of("ints"), how=unit),
    ]
    mapped = plain.replace("user_id", "Customer ID").replace("timestamp", "t")
    how = {**unit, "columns": {"user_id": "Customer ID", "timestamp": "t"}}
    cases.append(Case("csv-other-names", put("log.csv", mapped), events_of("ints"), how=how))
    both = f"user_id,User_ID,item_id,timestamp\n1,9,2,{START}\n"
    cases.append(Case("csv-names-in-two-cases", put("log.csv", both), [(1, 2, START * US)], how=unit))
    return cases


def time_cases() -> list[Case]:
    cases, unit = [], {"timestamp_unit": "s"}
    forms = {
        "Z": "%Y-%m-%dT%H:%M:%SZ", "space-z": "%Y-%m-%d %H:%M:%SZ", "+00": "%Y-%m-%d %H:%M:%S+00",
        "+0000": "%Y-%m-%dT%H:%M:%S+0000", "+00:00": "%Y-%m-%dT%H:%M:%S+00:00", "utc": "%Y-%m-%d %H:%M:%S UTC",
        "space-offset": "%Y-%m-%d %H:%M:%S +0000", "fraction": "%Y-%m-%d %H:%M:%S.%f+00:00",
        "nano": "%Y-%m-%dT%H:%M:%S.%f000Z", "comma": "%Y-%m-%dT%H:%M:%S,000Z",
    }  # fmt: skip
    for (name, form), kind in itertools.product(forms.items(), ("csv", "tsv", "jsonl", "parquet")):
        times = [iso(t, form) for t in SECONDS]
        if kind == "jsonl":
            write = put("log.jsonl", json_lines("ints", times))
        elif kind == "parquet":
            write = parquet(user_id=IDS["ints"][0], item_id=IDS["ints"][1], timestamp=times)
        else:
            quoting = csv.QUOTE_ALL if kind == "csv" else csv.QUOTE_NONE
            separator = "," if kind == "csv" else "\t"
            write = put(f"log.{kind}", table_text(rows_of("ints", times), separator, quoting))
        cases.append(Case(f"time-{name}-{kind}", write, events_of("ints")))
    summer = [("2021-10-31T01:30:00+02:00", 1635636600), ("2021-10-31T01:30:00+01:00", 1635640200)]
    two = [["user_id", "item_id", "timestamp"], *([1, n, text] for n, (text, _) in enumerate(summer))]
    wanted = [(1, n, t * US) for n, (_, t) in enumerate(summer)]
    cases.append(Case("time-two-offsets", put("log.csv", table_text(two)), wanted))
    local = [iso(t, "%Y-%m-%d %H:%M:%S", 1) for t in SECONDS]  # London has summer time in September
    london = {"time_zone": "Europe/London"}
    cases.append(
        Case("time-zone-text", put("l.csv", table_text(rows_of("ints", local))), events_of("ints"), how=london)
    )
    british = [iso(t, "%d/%m/%Y %H:%M:%S", 1) for t in SECONDS]
    how = {**london, "time_format": "%d/%m/%Y %H:%M:%S"}
    cases.append(Case("time-format", put("l.csv", table_text(rows_of("ints", british))), events_of("ints"), how=how))
    for unit_name, factor in (("s", 1), ("ms", 1000), ("us", US)):
        times = [t * factor for t in SECONDS]
        how = {"timestamp_unit": unit_name}
        for kind in ("csv", "parquet", "jsonl", "inter"):
            cases.append(Case(f"time-int-{unit_name}-{kind}", of_kind(kind, times), events_of("ints"), how=how))
    users, items = IDS["ints"]
    for resolution, zone in itertools.product(("s", "ms", "us", "ns"), ("UTC", "Europe/Berlin", "+05:30", None)):
        factor = {"s": 1, "ms": 1000, "us": US, "ns": 10**9}[resolution]
        stamps = pa.array([t * factor for t in SECONDS], pa.timestamp(resolution, zone))
        write = parquet(user_id=users, item_id=items, timestamp=stamps)
        if zone is not None:
            cases.append(Case(f"time-{resolution}-{zone}", write, events_of("ints")))
        else:
            cases.append(Case(f"time-{resolution}-naive", write, error="has no time zone"))
            cases.append(Case(f"time-{resolution}-said", write, events_of("ints"), how={"time_zone": "UTC"}))
    days = pa.array([dt.date(2020, 9, 13 + n) for n in range(4)], pa.date32())
    wanted = [(u, i, (1_599_955_200 + 86_400 * n) * US) for n, (u, i) in enumerate(zip(users, items, strict=True))]
    write = parquet(user_id=users, item_id=items, timestamp=days)
    cases.append(Case("time-dates", write, wanted, how={"time_zone": "UTC"}))
    bad = {
        "noon": ["noon"] * 4, "naive": [iso(t, "%Y-%m-%d %H:%M:%S") for t in SECONDS], "date": ["2020-09-13"] * 4,
        "us-order": [iso(t, "%m/%d/%Y %H:%M") for t in SECONDS], "february": ["2021-02-30T00:00:00Z"] * 4,
        "old": ["1970-01-01T00:00:00Z"] * 4, "future": ["2150-01-01T00:00:00Z"] * 4, "null": [""] * 4,
    }  # fmt: skip
    told = {
        "noon": "is not an ISO 8601", "us-order": "is not an ISO 8601", "february": "is not an ISO 8601",
        "old": "before 1990", "future": "lies in the future", "null": "has 4 nulls", "naive": "no time zone",
        "date": "no time zone",
    }  # fmt: skip
    for (name, times), kind in itertools.product(bad.items(), ("csv", "jsonl")):
        times = [None if t == "" and kind == "jsonl" else t for t in times]
        cases.append(Case(f"time-bad-{name}-{kind}", of_kind(kind, times), error=told[name]))
    spring = [["user_id", "item_id", "timestamp"], [1, 2, "2021-03-28 01:30:00"]]
    autumn = [["user_id", "item_id", "timestamp"], [1, 2, "2021-10-31 01:30:00"]]
    cases.append(Case("time-missing", put("l.csv", table_text(spring)), error="does not exist", how=london))
    cases.append(Case("time-twice", put("l.csv", table_text(autumn)), error="is there twice", how=london))
    cases.append(Case("time-zone-for-nothing", of_kind("csv", SECONDS), error="zone", how={**unit, **london}))
    cases.append(Case("time-no-unit", of_kind("csv", SECONDS), error="say their unit"))
    cases.append(
        Case("time-wrong-unit", of_kind("parquet", SECONDS), error="before 1990", how={"timestamp_unit": "ms"})
    )
    return cases


def json_lines(ids: str, times: list[Any], end: str = "\n") -> str:
    rows = zip(*IDS[ids], times, strict=True)
    return end.join(json.dumps({"user_id": u, "item_id": i, "timestamp": t, "extra": {"a": [1]}}) for u, i, t in rows)


def of_kind(kind: str, times: list[Any], ids: str = "ints") -> Callable[[Path], Path]:
    users, items = IDS[ids]
    if kind == "parquet":
        return parquet(user_id=users, item_id=items, timestamp=times)
    if kind == "jsonl":
        return put("log.jsonl", json_lines(ids, times))
    if kind == "inter":
        rows = [["user_id:token", "item_id:token", "timestamp:float"], *rows_of(ids, times)[1:]]
        return put("log.inter", table_text(rows, "\t", csv.QUOTE_NONE))
    separator, quoting = ("\t", csv.QUOTE_NONE) if kind == "tsv" else (",", csv.QUOTE_MINIMAL)
    return put(f"log.{kind}", table_text(rows_of(ids, times), separator, quoting))


def id_cases() -> list[Case]:
    cases, unit = [], {"timestamp_unit": "s"}
    n, ids = 4, [3, 1, 3, 0]
    wanted = [(u, i, t * US) for u, i, t in zip(ids, ids, SECONDS, strict=True)]
    kinds = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
    kinds += [pa.decimal128(38, 0), pa.dictionary(pa.int32(), pa.int64())]
    for kind in kinds:
        array = pa.array(
            [*map(Decimal, ids)] if pa.types.is_decimal(kind) else ids, None if pa.types.is_dictionary(kind) else kind
        )
        if pa.types.is_dictionary(kind):
            array = array.dictionary_encode()
        write = parquet(user_id=array, item_id=array, timestamp=SECONDS)
        cases.append(Case(f"ids-{kind}", write, wanted, how=unit))
    labels = ["b", "007", "", "7"]
    wanted = [(u, i, t * US) for u, i, t in zip(labels, labels, SECONDS, strict=True)]
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        array = pa.array(labels).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(labels, kind)
        cases.append(Case(f"ids-{kind}", parquet(user_id=array, item_id=array, timestamp=SECONDS), wanted, how=unit))
    refused = {
        "float": pa.array([1.0] * n), "float32": pa.array([1.0] * n, pa.float32()), "bool": pa.array([True] * n),
        "binary": pa.array([b"a"] * n), "list": pa.array([[1]] * n), "struct": pa.array([{"a": 1}] * n),
        "decimal": pa.array([Decimal(1)] * n, pa.decimal128(20, 2)), "date": pa.array([dt.date(2020, 1, 1)] * n),
        "negative": pa.array([1, -1, 2, 3]), "beyond": pa.array([1, 2**63, 2, 3], pa.uint64()),
        "null": pa.array([1, None, 2, 3]), "nul": pa.array(["a", "b\0c", "d", "e"]),
    }  # fmt: skip
    told = {
        "negative": "has id -1 in row 1",
        "beyond": "has id 9223372036854775808 in row 1",
        "null": "has 1 nulls, the first in row 1",
        "nul": "NUL",
    }
    for (name, array), column in itertools.product(refused.items(), ("user_id", "item_id", "session_id")):
        columns = {"user_id": pa.array([1] * n), "item_id": pa.array([1] * n), "timestamp": SECONDS, column: array}
        message = told.get(name, "holds .* values; ids are")
        cases.append(
            Case(f"ids-{name}-{column}", parquet(**columns), error=f"column '{column}' .*{message}|{message}", how=unit)
        )
    texts = {
        "-5": "has id -5", "7.0": "written as floats", "": "has 1 nulls, the first in row 1",
    }  # fmt: skip
    for (value, message), kind in itertools.product(texts.items(), ("csv", "tsv", "inter")):
        rows = [["user_id", "item_id", "timestamp"], [1, 2, START], [1, value, START + 1], [2, 3, START + 2]]
        if kind == "inter":
            rows[0] = ["user_id:token", "item_id:token", "timestamp:float"]
        separator, quoting = (",", csv.QUOTE_MINIMAL) if kind == "csv" else ("\t", csv.QUOTE_NONE)
        write = put(f"log.{kind}", table_text(rows, separator, quoting))
        cases.append(Case(f"ids-text-{value}-{kind}", write, error=message, how=unit))
    rows = f'user_id\titem_id\ttimestamp\n1\t"a"\t{START}\n'
    cases.append(Case("tsv-quoted", put("log.tsv", rows), error="in quotes", how=unit))
    lone = f'user_id\titem_id\ttimestamp\n1\t"big\t{START}\n2\tsmall"\t{START + 1}\n'
    cases.append(
        Case(
            "tsv-lone-quotes",
            put("log.tsv", lone),
            [(1, '"big', START * US), (2, 'small"', (START + 1) * US)],
            how=unit,
        )
    )
    for ids in IDS:
        for kind in ("tsv", "jsonl", "inter"):
            cases.append(Case(f"{kind}-{ids}", of_kind(kind, SECONDS, ids), events_of(ids), how=unit))
    json_bad = {
        "mixed": [1, "a"],
        "floats": [1.0, 2.0],
        "truth": [True, False],
        "nested": [[1], [2]],
        "null": [1, None],
    }
    for name, values in json_bad.items():
        text = "\n".join(json.dumps({"user_id": v, "item_id": 1, "timestamp": START}) for v in values)
        message = "has 1 nulls" if name == "null" else "holds .* values"
        cases.append(Case(f"jsonl-{name}", put("log.jsonl", text), error=message, how=unit))
    return cases


def broken_cases() -> list[Case]:
    head, unit = "user_id,item_id,timestamp\n", {"timestamp_unit": "s"}
    texts = {
        "one-more": (f"{head}1,2,{START},9\n", "line 2: 4 fields, the header has 3"),
        "one-less": (f"{head}1,2,{START}\n1,2\n", "line 3: 2 fields, the header has 3"),
        "open-quote": (f'{head}1,"2,{START}\n', "a quote is not closed"),
        "after-quote": (f'{head}1,"a" b,{START}\n', "a quote is not closed, or text follows"),
        "mixed-ends": (f"user_id,item_id,timestamp\r\n1,2,{START}\n1,2,{START}\r\n", "line ends are mixed"),
        "no-header": (f"1,2,{START}\n", "lack column"),
        "twice": (f"user_id,item_id,timestamp,user_id\n1,2,{START},3\n", "column 'user_id' is there twice"),
        "only-header": (head, "is empty"),
        "nothing": ("", "is empty"),
        "blank": ("\n\n", "is empty"),
        "value": (f"user_id,item_id,timestamp,value\n1,2,{START},much\n", "'much'. is no number"),
        "infinite": (f"user_id,item_id,timestamp,value\n1,2,{START},inf\n", "is infinite"),
        "no-session": (f"user_id,item_id,timestamp,session_id\n1,2,{START},\n", "'session_id' has 1 nulls"),
        "no-type": (f"user_id,item_id,timestamp,event_type\n1,2,{START},\n", "'event_type' has 1 nulls"),
    }  # fmt: skip
    cases = [Case(f"broken-{name}", put("log.csv", t), error=e, how=unit) for name, (t, e) in texts.items()]
    latin = f"{head}1,café,{START}\n".encode("latin-1")
    cases.append(Case("broken-latin", put("log.csv", latin), error="is not UTF-8", how=unit))
    cases.append(Case("broken-latin-tsv", put("log.tsv", latin.replace(b",", b"\t")), error="is not UTF-8", how=unit))
    cases.append(Case("broken-json", put("log.jsonl", '{"user_id": 1\n{"user_id": 2}\n'), error="line 2", how=unit))
    cases.append(Case("broken-parquet", put("log.parquet", b"PAR1 no"), error="can't be read", how=unit))
    cases.append(Case("broken-gzip", put("log.csv.gz.csv", gzip.compress(b"x")), error="log.csv.gz.csv", how=unit))
    cases.append(Case("broken-txt", put("log.txt", "1 2 3\n4\n"), error="line 2: user '4' has no items"))
    return cases


def folder_cases() -> list[Case]:
    unit = {"timestamp_unit": "s"}
    a, b = table_text(rows_of("ints")), f"timestamp,user_id,item_id\n{START + 9},5,6\n"
    both = [*events_of("ints"), (5, 6, (START + 9) * US)]
    users, items = IDS["ints"]
    one = parquet("d/a.parquet", user_id=users, item_id=items, timestamp=SECONDS)
    small = parquet(
        "d/b.parquet", item_id=pa.array([6], pa.int8()), user_id=pa.array([5], pa.uint16()), timestamp=[START + 9]
    )
    cases = [
        Case("several-csv", several("d/*.csv", put("d/a.csv", a), put("d/b.csv", b)), both, how=unit),
        Case("several-gz", several("d/*", put("d/a.csv", a), put("d/b.csv.gz", b)), both, how=unit),
        Case(
            "folder-csv", several("d", put("d/a.csv", a), put("d/sub/b.csv", b), put("d/_SUCCESS", "")), both, how=unit
        ),
        Case("several-parquet", several("d/*.parquet", one, small), both, how=unit),
        Case(
            "folder-parquet",
            several("d", one, small, put("d/_SUCCESS", ""), put("d/.a.parquet.crc", "x")),
            both,
            how=unit,
        ),
        Case("literal-star", several("p*.csv", put("p*.csv", a), put("p2.csv", b)), events_of("ints"), how=unit),
        Case("two-kinds", several("d/*", put("d/a.csv", a), one), error="of two kinds", how=unit),
    ]
    text = parquet("d/b.parquet", user_id=["5"], item_id=[6], timestamp=[START + 9])
    cases.append(
        Case(
            "several-types",
            several("d/*.parquet", one, text),
            error="BIGINT in .*a.parquet and VARCHAR in .*b",
            how=unit,
        )
    )
    late = parquet("d/b.parquet", user_id=[5], item_id=[6], timestamp=[START + 9], event_type=["buy"])
    cases.append(
        Case("new-column", several("d/*.parquet", one, late), error="a.parquet lacks column 'event_type'", how=unit)
    )
    late_csv = put("d/b.csv", f"user_id,item_id,timestamp,value\n5,6,{START + 9},1\n")
    cases.append(
        Case(
            "new-column-csv",
            several("d/*.csv", put("d/a.csv", a), late_csv),
            error="a.csv lacks column 'value'",
            how=unit,
        )
    )
    aware = pa.array([(START + 9) * US], pa.timestamp("us", "UTC"))
    naive = pa.array([(START + 9) * US], pa.timestamp("us"))
    zones = [parquet(f"d/{n}.parquet", user_id=[5], item_id=[6], timestamp=t) for n, t in (("a", aware), ("b", naive))]
    cases.append(Case("several-zones", several("d/*.parquet", *zones), error="make them one type"))
    for user, _write in (("user_id=7", one), ("user_id=x", one)):
        moved = parquet(f"h/{user}/p.parquet", user_id=users, item_id=items, timestamp=SECONDS)
        cases.append(Case(f"hive-clash-{user}", several(f"h/{user}/p.parquet", moved), events_of("ints"), how=unit))
    kinds = [
        parquet(f"h/event_type={k}/p.parquet", user_id=[n], item_id=[6], timestamp=[START + n])
        for n, k in enumerate(("a b", "buy"))
    ]
    kinds_csv = [
        put(f"h/event_type={k}/p.csv", f"user_id,item_id,timestamp\n{n},6,{START + n}\n")
        for n, k in enumerate(("a b", "buy"))
    ]
    wanted = [(n, 6, (START + n) * US, k) for n, k in enumerate(("a b", "buy"))]
    columns = ("user_id", "item_id", "timestamp", "event_type")
    cases.append(Case("hive-types", several("h", *kinds), wanted, how=unit, columns=columns))
    cases.append(Case("hive-types-csv", several("h", *kinds_csv), wanted, how=unit, columns=columns))
    cases.append(
        Case(
            "txt",
            put("log.txt", "1 10 11\n\n2  12\t10\n"),
            [(1, 10), (1, 11), (2, 12), (2, 10)],
            columns=("user_id", "item_id"),
        )
    )
    cases.append(
        Case(
            "txt-crlf",
            put("log.TXT", "a x\u00a0y z\r\nb z\r\n"),
            [("a", "x\u00a0y"), ("a", "z"), ("b", "z")],
            columns=("user_id", "item_id"),
        )
    )
    return cases


def list_cases() -> list[Case]:
    micros = [[START * US, START * US + 5], [START * US]]
    wanted = [(1, 10, START * US), (1, 11, START * US + 5), (2, 10, START * US)]
    good = {"user_id": [1, 2], "item_ids": [[10, 11], [10]], "timestamps": micros}
    cases = [Case("lists", parquet("part-0.parquet", **good), wanted)]
    mapped = {"customer" if k == "user_id" else k: v for k, v in good.items()}
    cases.append(Case("lists-mapped", parquet(**mapped), wanted, how={"columns": {"user_id": "customer"}}))
    cases.append(
        Case(
            "lists-null-item",
            parquet("part-0.parquet", **{**good, "item_ids": [[10, None], [10]]}),
            [wanted[0], wanted[2]],
        )
    )
    cases.append(
        Case(
            "lists-empty",
            parquet("part-0.parquet", **{**good, "item_ids": [[10, 11], []], "timestamps": [micros[0], []]}),
            wanted[:2],
        )
    )
    stamps = pa.array(micros, pa.list_(pa.timestamp("us", "UTC")))
    cases.append(Case("lists-stamps", parquet("part-0.parquet", **{**good, "timestamps": stamps}), wanted))
    bad = {
        "unequal": ({"timestamps": [[START * US], [START * US]]}, "differ in length, first of user 1"),
        "seconds": ({"timestamps": [[START, START + 1], [START]]}, "before 1990"),
        "null-time": ({"timestamps": [[START * US, None], [START * US]]}, "'timestamp' has 1 nulls"),
        "naive": ({"timestamps": pa.array(micros, pa.list_(pa.timestamp("us")))}, "has no time zone"),
        "negative": ({"item_ids": [[10, -3], [10]]}, "has id -3"),
        "floats": ({"item_ids": [[10.0, 3.0], [10.0]]}, "holds float values"),
        "no-user": ({"user_id": pa.array([1, None])}, "'user_id' has 1 nulls"),
        "no-list": ({"timestamps": [START * US, START * US]}, "column 'timestamps' has type BIGINT"),
    }  # fmt: skip
    for name, (columns, message) in bad.items():
        cases.append(Case(f"lists-{name}", parquet("part-0.parquet", **{**good, **columns}), error=message))
    return cases


def option_cases() -> list[Case]:
    unit = {"timestamp_unit": "s"}
    shop = "Invoice,StockCode,Quantity,Price,InvoiceDate,Customer ID\n"
    lines = [
        ("489434", "85048", "12", "6.95", "2009-12-01 07:45:00", "13085"),
        ("489434", "79323P", "12", "6.75", "2009-12-01 07:45:00", "13085"),
        ("C489449", "22087", "-12", "2.95", "2009-12-01 10:33:00", "16321"),
        ("489450", "22087", "3", "2.95", "2010-07-01 10:33:00", ""),
        ("489451", "22087", "3", "2.95", "2010-07-01 10:34:00", "16321"),
    ]  # fmt: skip
    text = shop + "\n".join(",".join(line) for line in lines) + "\n"
    how = {
        "columns": {
            "user_id": "Customer ID", "item_id": "StockCode", "timestamp": "InvoiceDate", "session_id": "Invoice"
        },
        "time_zone": "Europe/London", "on_null": "drop", "where": "Quantity > 0",
    }  # fmt: skip
    wanted = [
        (13085, "85048", 1259653500 * US, 489434),
        (13085, "79323P", 1259653500 * US, 489434),
        (16321, "22087", 1277976840 * US, 489451),  # 09:34 in UTC
    ]
    columns = ("user_id", "item_id", "timestamp", "session_id")
    typed = {
        "Invoice": [line[0] for line in lines], "StockCode": [line[1] for line in lines],
        "Quantity": pa.array([int(line[2]) for line in lines], pa.int16()), "Price": [float(line[3]) for line in lines],
        "InvoiceDate": [line[4] for line in lines],
        "Customer ID": pa.array([int(line[5]) if line[5] else None for line in lines], pa.int32()),
    }  # fmt: skip
    stamps = [dt.datetime.fromisoformat(line[4]) for line in lines]
    typed_wanted = [(u, i, t, str(s)) for u, i, t, s in wanted]
    json_text = "\n".join(
        json.dumps({k: v[n].as_py() if hasattr(v[n], "as_py") else v[n] for k, v in typed.items()}) for n in range(5)
    )
    cases = [
        Case("shop-csv", put("retail.csv", text), wanted, how=how, columns=columns),
        Case("shop-parquet", parquet(**typed), typed_wanted, how=how, columns=columns),
        Case(
            "shop-stamps", parquet(**{**typed, "InvoiceDate": pa.array(stamps)}), typed_wanted, how=how, columns=columns
        ),
        Case("shop-jsonl", put("retail.jsonl", json_text), typed_wanted, how=how, columns=columns),
    ]
    four = table_text(rows_of("ints"))
    same = four + four.split("\n", 1)[1]
    cases.append(Case("equal-kept", put("l.csv", same), events_of("ints") * 2, how=unit))
    cases.append(Case("equal-dropped", put("l.csv", same), events_of("ints"), how={**unit, "on_duplicate": "drop"}))
    gap = f"user_id,item_id,timestamp\n1,,{START}\n,2,{START}\n3,4,\n5,6,{START}\n"
    cases.append(Case("nulls-dropped", put("l.csv", gap), [(5, 6, START * US)], how={**unit, "on_null": "drop"}))
    none = {**unit, "where": "user_id > 99"}
    cases.append(Case("nothing-left", put("l.csv", four), error="its 4 rows are left out by where", how=none))
    wrong = {
        "nothing": "nonsense >",
        "column": "Quantityy > 0",
        "number": "item_id + 1",
        "two": "true, false",
        "union": "true) UNION SELECT (1",
    }
    told = {
        "nothing": "syntax error",
        "column": "no column 'Quantityy'",
        "number": "not true or false",
        "two": "not true or false",
        "union": "syntax error|one expression|for example",
    }
    for name, where in wrong.items():
        cases.append(Case(f"where-{name}", put("l.csv", four), error=told[name], how={**unit, "where": where}))
    comment = {**unit, "where": "user_id = 1 -- of one"}
    cases.append(Case("where-comment", put("l.csv", four), [e for e in events_of("ints") if e[0] == 1], how=comment))
    return cases


def corpus() -> list[Case]:
    """All cases; names are unique."""
    cases = [
        *csv_cases(), *time_cases(), *id_cases(), *broken_cases(), *folder_cases(), *list_cases(), *option_cases()
    ]  # fmt: skip
    assert len({case.name for case in cases}) == len(cases)
    return cases


if __name__ == "__main__":
    for each in corpus():
        place = Path(sys.argv[1]) / each.name.replace("/", "-")
        place.mkdir(parents=True)
        each.write(place)
    print(f"{len(corpus())} logs in {sys.argv[1]}")
