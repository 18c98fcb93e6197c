"""For plugins that bring commands (hook ``bseq_commands``): options, files and printing as in the commands of ``bseq``.

out, note          consoles for results (stdout) and for everything else (stderr): text is text, nothing is markup
Table, styled      a table whose cells are never cut, and text in bold or in a colour; ``joined`` pieces of it
counting           a progress bar
show               rows as a table, as JSON (option ``AsJson``) or to a Parquet file (``ListFile``)
reads_log          a decorator: a command's parameter ``reading: LogOptions = AS_IT_IS`` becomes the options that say
                   how a log is read; ``read_log`` reads it, ``require_source`` refuses them where there is no log
Items, KeyFile     options for the items table (``read_table``) and for a secret key (``pseudonymiser``)
check_output       refuse a file that can't be written before the work begins
write_parquet      a table as a Parquet file, whole or not at all; ``write_json`` likewise
option_values      ``["n_experts=8"]`` as typed settings of a part
read_id            an id of the command line as a log's own ids are written
"""

from __future__ import annotations

from bseq_plugin.cli.common import (
    AsJson,
    Items,
    KeyFile,
    check_output,
    option_values,
    pseudonymiser,
    read_log,
    read_table,
    write_parquet,
)
from bseq_plugin.cli.listing import ListFile, show
from bseq_plugin.cli.log_options import AS_IT_IS, LogOptions, reads_log, require_source
from bseq_plugin.console import Table, counting, joined, note, out, styled
from bseq_plugin.events.ids import read_id
from bseq_plugin.files import write_json

__all__ = [
    "AS_IT_IS",
    "AsJson",
    "Items",
    "KeyFile",
    "ListFile",
    "LogOptions",
    "Table",
    "check_output",
    "counting",
    "joined",
    "note",
    "option_values",
    "out",
    "pseudonymiser",
    "read_id",
    "read_log",
    "read_table",
    "reads_log",
    "require_source",
    "show",
    "styled",
    "write_json",
    "write_parquet",
]
