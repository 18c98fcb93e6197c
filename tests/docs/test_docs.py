"""What the documents say is so: code runs, hooks, parts and recipe fields are all there."""

import json
import re
import types
from pathlib import Path

import pandas as pd
import pytest

import bseq_plugin as bseq
from bseq_plugin import PluginManager, builtin, plugin_manager
from bseq_plugin.cli import plugin_commands
from bseq_plugin.hookspecs import BseqSpecs
from bseq_plugin.plugins import PART_HOOKS, hook_names
from bseq_plugin.ranking.features import FEATURES
from bseq_plugin.recipe.describe import keys
from bseq_plugin.testing.encoders import EncoderTests
from bseq_plugin.testing.indexes import IndexTests
from bseq_plugin.testing.item_encoders import ItemEncoderTests
from bseq_plugin.testing.losses import LossTests
from bseq_plugin.testing.ranking_features import RankingFeatureTests
from bseq_plugin.testing.sources import CandidateSourceTests

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)


def python_blocks(text):
    """The Python blocks that are meant to run: not those marked ``no-run``."""
    return [match["code"] for match in FENCE.finditer(text) if match["info"].strip() == "python"]


def sections(text, heading):
    """Title -> body of the headings that begin with ``heading`` and a space."""
    _, *parts = re.split(rf"^{heading} (.+)$", text, flags=re.M)
    bodies = [re.split(r"^#{1,3} ", body, flags=re.M)[0] for body in parts[1::2]]
    return dict(zip(parts[::2], bodies, strict=True))


def signature(hook):
    manager = PluginManager()
    return f"{hook}({', '.join(getattr(manager.hook, hook).spec.argnames)})"


HOOKS = {title: body for title, body in sections(DOCS["plugins.md"], "###").items() if title.startswith("bseq_")}


def run(blocks, where):
    """A module made of the blocks there are, one after the other."""
    assert blocks, where
    module = types.ModuleType("block")
    exec(compile("\n".join(blocks), where, "exec"), module.__dict__)
    return module


def plugin(title):
    """The plugin of a hook's section."""
    return run(python_blocks(HOOKS[title]), f"docs/plugins.md, {title}")


class TestEncoderOfTheGuide(EncoderTests):
    encoder = plugin("bseq_encoders()").LastEvent


class TestEncoderWithOptionsOfTheGuide(EncoderTests):
    encoder = run(python_blocks(sections(DOCS["plugins.md"], "##")["Options"]), "docs/plugins.md, Options").WindowMean
    options = {"window": 2}  # noqa: RUF012


class TestEncoderOfTheReadme(EncoderTests):
    encoder = run([code for code in python_blocks(README) if "class Gru" in code], "README.md").Gru


class TestLossOfTheGuide(LossTests):
    loss = plugin("bseq_losses()").BPR


class TestItemEncoderOfTheGuide(ItemEncoderTests):
    item_encoder = plugin("bseq_item_encoders()").Letters
    items = pd.DataFrame({"item_id": [1, 2, 3], "name": ["lip balm", None, "42"]})
    empty = (1, 2)


class TestIndexOfTheGuide(IndexTests):
    index = plugin("bseq_indexes()").SortIndex


class TestSourceOfTheGuide(CandidateSourceTests):
    source = plugin("bseq_candidate_sources()").Newcomers


class TestFeatureOfTheGuide(RankingFeatureTests):
    feature = plugin("bseq_ranking_features()").DaysSinceLast


def test_every_hook_has_a_section_with_its_signature_and_no_other_has():
    assert set(HOOKS) == {signature(hook) for hook in hook_names()}
    assert all(getattr(BseqSpecs, hook).__doc__ for hook in hook_names())


@pytest.mark.parametrize("title", HOOKS)
def test_the_example_of_a_hook_registers_beside_the_built_in_parts(title):
    manager = PluginManager()
    manager.register(builtin, "builtin")
    manager.register(plugin(title), "guide")
    mine = next(info for info in manager.infos() if info.name == "guide")
    hook = title.partition("(")[0]
    assert mine.hooks == [hook]
    if hook in PART_HOOKS.values():
        given = [name for kind, names in mine.parts.items() for name in names if PART_HOOKS[kind] == hook]
        assert len(given) == len(getattr(plugin(title), hook)()) == sum(len(names) for names in mine.parts.values())


def test_the_reader_of_the_guide_reads(tmp_path):
    path = tmp_path / "log.feather"
    pd.DataFrame({"user_id": [1] * 3, "item_id": 7, "timestamp": 1700000000}).to_feather(path)
    read = plugin("bseq_read_events(source, columns, timestamp_unit, options)").bseq_read_events
    assert len(read(str(path), None, "s")) == 3
    assert read(pd.DataFrame(), None, None) is None


def test_the_command_of_the_guide_runs(bseq, monkeypatch, tiny_source, tiny_frame):
    manager = PluginManager()
    manager.register(plugin("bseq_commands(app)"), "guide", distribution="guide")
    monkeypatch.setattr(plugin_commands, "plugin_manager", lambda: manager)
    longest = tiny_frame["user_id"].value_counts().max()
    assert bseq("longest", tiny_source)[:2] == (0, f"{longest}\n")
    assert "─ Counting ─" in bseq("--help")[1]


@pytest.mark.parametrize("kind", PART_HOOKS)
def test_every_built_in_part_is_described(kind):
    whole = "\n".join(DOCS.values())
    of_builtin = next(info for info in plugin_manager().infos() if info.name == "builtin")
    assert [name for name in of_builtin.parts[kind] if f"`{name}`" not in whole] == []


def test_every_ranking_feature_stands_in_its_table_as_the_code_defines_it():
    text = DOCS["ranking.md"].split("<!-- features -->")[1].split("<!-- /features -->")[0]
    plain = text.replace("⟨", "<").replace("⟩", ">").replace("\\|", "|")
    assert text.count("| `") == len(FEATURES)
    for feature in FEATURES:
        wanted = (
            f"| `{feature.name}` | {feature.description} | {feature.unit} | {feature.null_rule} | {feature.source} |"
        )
        assert wanted in plain, f"docs/ranking.md: write {wanted}"
        assert f"**{feature.group}**" in text


def rows(text):
    """Cells of every table row."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_field_of_a_recipe_is_described_with_its_default():
    table, options = DOCS["recipes.md"].split("## Options of the built-in encoders")
    described = {cells[0].strip("`"): (cells[1].strip("`"), cells[2]) for cells in rows(table)}
    defaults = {key.name: key.default for key in keys(bseq.Recipe)}
    written = {name: default for name, (default, _) in described.items()}
    wrong = sorted(name for name in written.keys() | defaults.keys() if written.get(name) != defaults.get(name))
    assert wrong == [], f"docs/recipes.md: add, correct or remove the rows of {wrong}"
    assert all(text for _, text in described.values())
    of_parts = {tuple(cell.strip("`") for cell in cells[:3]) for cells in rows(options)}
    parts = {
        name: plugin_manager().part("encoder", name) for name in ("causal", "hstu", "cross_session", "gru", "mean")
    }
    parts |= {name: plugin_manager().part("loss", name) for name in ("softmax", "bce", "gbce")}
    parts["columns"] = plugin_manager().part("item encoder", "columns")
    # the table of what `auto` chooses has no default column
    assert {row for row in of_parts if row[0] in parts} == {
        (name, option, json.dumps(value))
        for name, part in parts.items()
        for option, value in part.Options.model_construct().model_dump(mode="json").items()
    }


def test_every_command_is_in_the_readme(python):
    listed = python("-m", "bseq_plugin.cli.main", "--help").stdout
    commands = re.findall(r"^│ ([a-z][a-z-]*) ", listed, re.M)
    assert "demo" in commands
    assert [command for command in commands if f"bseq {command}" not in README] == []


def test_the_code_of_the_readme_runs(python, tmp_path):
    """All blocks in one process, from top to bottom."""
    script = tmp_path / "readme.py"
    script.write_text("\n".join(python_blocks(README)), encoding="utf-8")
    done = python(script, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([3, 1])" in done.stdout


def test_links_lead_somewhere():
    for file, text in {"README.md": README, **{f"docs/{name}": text for name, text in DOCS.items()}}.items():
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if "://" not in target:
                assert ((ROOT / file).parent / target).exists(), f"{file}: {target}"
