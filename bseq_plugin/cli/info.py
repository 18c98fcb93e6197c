"""``bseq plugins``, ``bseq recipes`` and ``bseq doctor``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bseq_plugin.cli.common import AsJson
from bseq_plugin.cli.listing import ListFile, show
from bseq_plugin.console import Table, joined, out, styled

if TYPE_CHECKING:
    from bseq_plugin.plugins import PluginInfo


def plugins(as_json: AsJson = False, file: ListFile = None) -> None:
    """What is loaded, from which distribution, which parts it gives, and what failed to load and why.

    Example: `bseq plugins`. Environment: BSEQ_PLUGINS=a,b loads only these; BSEQ_DISABLE_PLUGINS=c leaves c out.
    """
    from bseq_plugin.plugins import plugin_manager

    infos = plugin_manager().infos()
    attach = plugin_manager().implementations("bseq_attach")
    hosts = {info.name: _first_line(function) or "models it knows" for info, function in attach}
    rows = [asdict(info) | {"attaches": hosts.get(info.name)} for info in infos]
    show(rows, lambda: _drawn(infos, hosts), as_json, file)


def _drawn(infos: list[PluginInfo], hosts: dict[str, str]) -> Table:
    table = Table("plugin", "distribution", "gives")
    for info in infos:
        made = f"{info.distribution} {info.version}".strip()
        gives = "\n".join(f"{kind}: {', '.join(names)}" for kind, names in info.parts.items() if names)
        if "bseq_read_events" in info.hooks:
            gives += "\nreads event sources"
        if info.name in hosts:
            gives += f"\nattaches an encoder: {hosts[info.name]}"
        if info.error:
            table.row(info.name, made, joined(styled(f"failed: {info.error}", "red"), f"\n{gives}".rstrip()))
        else:
            table.row(info.name, made, gives.strip())
    return table


def _first_line(function: Callable[..., object]) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0].replace("``", "").rstrip(".")


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one whole.")] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Show every key of a recipe: default and meaning.")] = False,
    as_json: AsJson = False,
    file: ListFile = None,
) -> None:
    """The recipes that come with the package, and every key that `--set` takes.

    Example: `bseq recipes reference`, `bseq recipes --keys`
    """
    from bseq_plugin.recipe.recipe import Recipe

    if keys:
        from bseq_plugin.recipe.describe import keys as keys_of

        table = Table("key", "default", "what it does", "only with kind")
        every = list(keys_of(Recipe))
        for key in every:
            table.row(key.name, key.default, key.text, ", ".join(key.kinds))
        show([key._asdict() for key in every], lambda: table, as_json, file)
        return
    from bseq_plugin.data.auto_recipe import AUTO, AUTO_DESCRIPTION
    from bseq_plugin.recipe.files import recipe_description, shipped_recipes

    if name == AUTO:
        out.print(f"{AUTO_DESCRIPTION} `bseq train LOG --recipe auto` leaves the chosen settings in RUN/recipe.json.")
        return
    if name is not None:
        out.print_json(json.dumps(Recipe.load(name).as_dict()))
        return
    described = {AUTO: AUTO_DESCRIPTION, **{shipped: recipe_description(shipped) for shipped in shipped_recipes()}}
    table = Table("recipe", "what it is for")
    for recipe, text in described.items():
        table.row(recipe, text)
    show([{"recipe": recipe, "for": text} for recipe, text in described.items()], lambda: table, as_json, file)


def doctor(
    store: Annotated[Path | None, typer.Option("--store", help="Check this store as well.")] = None,
    as_json: AsJson = False,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the two processes that train a step.")] = False,
) -> None:
    """Check versions, wheels, what this device can shard and optimise, threads, and two processes training a step.

    Each finding comes with its remedy. Example: `bseq doctor --store store`. Ends with 1 if something will not work.
    """
    from bseq_plugin.doctor.diagnosis import diagnose

    findings = diagnose(store, smoke=not quick)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        table = Table("", "what", "found", "what to do")
        colours = {"ok": "green", "note": "yellow", "bad": "red"}
        for finding in findings:
            table.row(styled(finding.state, colours[finding.state]), finding.what, finding.found, finding.remedy)
        out.print(table)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)
