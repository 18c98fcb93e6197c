"""``bseq``: one module a group of commands; imports of torch and friends stand inside the commands."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings

import typer

from bseq_plugin import __version__
from bseq_plugin.cli import index, store
from bseq_plugin.cli.demo import demo
from bseq_plugin.cli.features import features
from bseq_plugin.cli.info import doctor, plugins, recipes
from bseq_plugin.cli.learn import benchmark, evaluate, fit_blend, train
from bseq_plugin.cli.plugin_commands import CommandGroup
from bseq_plugin.cli.publish import publish
from bseq_plugin.cli.retrieve import retrieve
from bseq_plugin.cli.sequences import sequences
from bseq_plugin.console import joined, note, styled
from bseq_plugin.errors import BseqError

app = typer.Typer(
    name="bseq",
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Sequence-interest encoders for TorchRec: train, publish to an index, retrieve candidates, make ranking "
    "features.\n\nStart with `bseq demo`. Exit codes: 2 for wrong use, 1 for failures; `--debug` shows tracebacks.",
)
for command in (
    demo, sequences, train, evaluate, fit_blend, benchmark, publish, retrieve, features, plugins, recipes, doctor
):  # fmt: skip
    app.command()(command)
app.add_typer(store.group, name="store")
app.add_typer(index.group, name="index")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bseq {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: bool = typer.Option(False, "--debug", help="Show the whole traceback of an error."),
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
    ),
) -> None:
    """Options of all commands."""
    if debug:
        os.environ["BSEQ_DEBUG"] = "1"
    else:
        quiet()


def quiet() -> None:
    """Silence TorchRec's and torch's warnings about their own internals, which a reader of our output can't act on."""
    for name in ("torchrec", "torch.fx", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    for module in (r"torch\..*", r"torchrec\..*"):
        warnings.filterwarnings("ignore", category=UserWarning, module=module)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def main() -> None:
    """Run ``bseq``, as its entry point."""
    # oneDNN keeps a compiled kernel for each of the last 1,024 shapes it met, some hundreds of megabytes where shapes
    # are ever new ones (a sample of candidates). Those that come again are some two hundred: with fewer kept than that
    # each is compiled anew whenever it comes. oneDNN reads this when it is first used.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    try:
        app()
    except BseqError as error:
        _report("error:", str(error), error.exit_code)
    except KeyboardInterrupt:
        _report("interrupted", "", 130)
    except Exception as error:  # the last resort: whatever is left is a failure of ours, told in one line
        _report("failed:", f"{type(error).__name__}: {error} (bseq --debug COMMAND shows where)", 1)


def _report(what: str, message: str, code: int) -> None:
    if os.environ.get("BSEQ_DEBUG"):
        traceback.print_exc()
    note.print(joined(styled(what, "bold red"), f" {message}"))
    sys.exit(code)


if __name__ == "__main__":
    main()
