"""The files of a source, and what kind each is."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from bseq_plugin.errors import UsageError

KINDS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl",
    ".ndjson": "jsonl", ".inter": "inter", ".txt": "txt",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
SEALED = "sequences.json"
PART = "part-*.parquet"
READ = ".parquet, .csv, .tsv, .jsonl, .inter or .txt, text also as .gz or .zst"


@dataclass(frozen=True)
class LogFile:
    """A file, its kind (a value of KINDS), and its compression as DuckDB calls it."""

    path: Path
    kind: str
    compression: str


def known_file(path: Path) -> LogFile | None:
    """Return what a file's name says, in whatever case; None if it is no kind that is read."""
    endings = [ending.lower() for ending in path.suffixes]
    compression = COMPRESSIONS.get(endings[-1]) if endings else None
    if compression is not None:
        endings.pop()
    kind = KINDS.get(endings[-1]) if endings else None
    if kind is None or (kind == "parquet" and compression is not None):
        return None
    return LogFile(path, kind, compression or "none")


def is_readable(source: str) -> bool:
    """Whether a path or pattern names files, or a folder, that the built-in readers read."""
    if known_file(Path(source)) is not None or Path(source).is_dir():
        return True
    return any(known_file(Path(path)) is not None for path in glob.iglob(source, recursive=True))


def holds_partitions(folder: Path) -> bool:
    """Whether a folder is one of partitioned sequences, or of parts that only have to be sealed."""
    import pyarrow.parquet as pq

    if (folder / SEALED).is_file():
        return True
    first = min(folder.glob(PART), default=None)
    if first is None:
        return not any(folder.iterdir())
    try:
        return "item_ids" in pq.read_schema(first).names
    except (OSError, ValueError):
        return False


def log_files(source: str) -> list[LogFile]:
    """Return the files of a path, folder or pattern, in the order of their names.

    A folder is all that lies in it, at any depth, but for names that begin with ``_`` or ``.`` (Spark's ``_SUCCESS``).

    Raises UsageError if there is none, if one is of no kind that is read, or if they are of several kinds.
    """
    if Path(source).exists():
        paths = [Path(source)]
    else:
        paths = [Path(path) for path in sorted(glob.glob(source, recursive=True))]
    files = [file for path in paths for file in (_in_folder(path) if path.is_dir() else [_known(path)])]
    if not files:
        raise UsageError(f"there is no file {source!r}" + (" in this folder" if Path(source).is_dir() else ""))
    other = next((file for file in files if file.kind != files[0].kind), None)
    if other is not None:
        raise UsageError(f"{files[0].path} and {other.path} are of two kinds; read one kind at a time")
    return files


def _in_folder(folder: Path) -> list[LogFile]:
    if (folder / SEALED).is_file():
        return [_known(path) for path in sorted(folder.glob(PART))]
    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    hidden = ("_", ".")
    return [_known(p) for p in inside if not any(part.startswith(hidden) for part in p.relative_to(folder).parts)]


def _known(path: Path) -> LogFile:
    file = known_file(path)
    if file is None:
        raise UsageError(f"{path} is of no kind that is read; give {READ}")
    return file
