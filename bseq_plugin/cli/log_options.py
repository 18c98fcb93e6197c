"""The options of a command that reads a log: one block, the same for all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Literal

import typer

from bseq_plugin.errors import UsageError
from bseq_plugin.events.log_options import SESSION, LogOptions

__all__ = ["AS_IT_IS", "LogOptions", "reads_log", "require_source"]

PARAMETER = "reading"  # of a command, that becomes the block
AS_IT_IS = LogOptions(command=True)  # its default


def _options(
    column: Annotated[
        list[str] | None, typer.Option("--column", help="ours=theirs, e.g. user_id=household_id; repeat it.")
    ] = None,
    session_id: Annotated[
        str | None, typer.Option("--session-id", help="Column that tells sessions apart; as --column session_id=...")
    ] = None,
    timestamp_unit: Annotated[
        str | None, typer.Option("--timestamp-unit", help="s, ms or us, for integer times.")
    ] = None,
    time_zone: Annotated[
        str | None, typer.Option("--time-zone", help="Of times without one, e.g. Europe/London.")
    ] = None,
    time_format: Annotated[
        str | None, typer.Option("--time-format", help="Of times in text that is not ISO 8601, e.g. '%d/%m/%Y %H:%M'.")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", help="Rows to read, an SQL expression, e.g. 'Quantity > 0'.")
    ] = None,
    on_null: Annotated[
        Literal["error", "drop"], typer.Option("--on-null", help="Rows without a user, an item, a time ...")
    ] = "error",
    on_duplicate: Annotated[
        Literal["keep", "drop"], typer.Option("--on-duplicate", help="Rows that are equal to an earlier one.")
    ] = "keep",
    limit_users: Annotated[
        int | None, typer.Option("--limit-users", help="Read so many users only, for a first try.")
    ] = None,
) -> LogOptions:
    """What is given of the block, as one."""
    from bseq_plugin.cli.common import column_mapping

    columns = column_mapping(column)
    if session_id is not None:
        if SESSION in columns:
            raise UsageError("--session-id and --column session_id=... say the same; give one")
        columns[SESSION] = session_id
    return LogOptions(
        columns, timestamp_unit, time_zone, time_format, where, on_null, on_duplicate, limit_users, command=True
    )


def reads_log(command: Callable[..., None]) -> Callable[..., None]:
    """Make the parameter ``reading: LogOptions = AS_IT_IS`` of a command the options that say how a log is read."""
    own = inspect.signature(command, eval_str=True)
    block = inspect.signature(_options, eval_str=True).parameters

    @wraps(command)
    def run(**given: Any) -> None:
        reading = _options(**{name: given.pop(name) for name in block})
        command(**given, **{PARAMETER: reading})

    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        parameters += block.values() if name == PARAMETER else [parameter]
    # typer asks for both
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def require_source(reading: LogOptions, given: bool, option: str) -> None:
    """Raise UsageError if options say how a log is read that is not given."""
    if not given and reading != AS_IT_IS:
        raise UsageError(f"options that say how a log is read belong to {option}; give it, or leave them out")
