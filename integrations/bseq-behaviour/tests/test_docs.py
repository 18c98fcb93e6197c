"""What the documents of this package say is so: code runs, the hook and all heads are there, links lead somewhere."""

import re
import types
from pathlib import Path

import bseq_behaviour as behaviour
import pytest
from bseq_behaviour.contract.hookspecs import HeadSpecs
from bseq_behaviour.contract.registry import KINDS, HeadManager, head_manager
from bseq_behaviour.testing.heads import BinaryHeadTests, CatalogueHeadTests, CountHeadTests
from bseq_behaviour.testing.sequence_heads import SequenceHeadTests

ROOT = Path(__file__).parents[1]
DOCS = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
GUIDE = DOCS[ROOT / "docs" / "heads.md"]
FENCE = re.compile(r"^```python\n(?P<code>.*?)^```$", re.M | re.S)


def blocks(text):
    return "\n".join(match["code"] for match in FENCE.finditer(text))


HEADS = types.ModuleType("heads_of_the_guide")
exec(compile(blocks(GUIDE), "docs/heads.md", "exec"), HEADS.__dict__)


class TestBinaryHeadOfTheGuide(BinaryHeadTests):
    head = HEADS.CosineHead


class TestCatalogueHeadOfTheGuide(CatalogueHeadTests):
    head = HEADS.GainsHead


class TestCountHeadOfTheGuide(CountHeadTests):
    head = HEADS.SoftplusHead


class TestSequenceHeadOfTheGuide(SequenceHeadTests):
    head = HEADS.RecurrentHead


def test_the_hook_has_a_section_with_its_signature():
    assert [name for name in vars(HeadSpecs) if not name.startswith("_")] == ["bseq_heads"]
    assert "\n## bseq_heads()\n" in GUIDE


def test_the_heads_of_the_guide_register():
    manager = HeadManager()
    manager.register(HEADS, "guide")
    assert {kind: len(manager.parts(kind)) for kind in KINDS} == dict.fromkeys(KINDS, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_head_is_described(kind):
    described = GUIDE.split("## Heads of this package")[1]
    assert [name for name in head_manager().parts(kind) if f"`{name}`" not in described] == []


def test_every_command_is_in_the_documents(command):
    panel = command("--help")[1].split("What users will do and are like")[1]
    shown = panel.partition("╭")[0]  # where the next panel begins, of another plugin
    commands = re.findall(r"^│ ([a-z][a-z-]*) ", shown, re.M)
    assert {"score", "next-k", "multitask", "explain", "heads"} <= set(commands)
    whole = "\n".join(DOCS.values())
    assert [name for name in commands if f"bseq {name}" not in whole] == []


def test_help_of_every_command_has_an_example(command):
    for name in ("score", "returns", "demand", "next-k", "multitask", "segments", "anomalies", "explain", "heads"):
        code, out, _ = command(name, "--help")
        assert (code, f"bseq {name}" in out.split("Example: ")[1]) == (0, True)


def test_the_code_of_the_readme_runs(habit_run, tmp_path, monkeypatch):
    """Days are fewer than those of the README: the log is short."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "today").symlink_to(habit_run.path)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(compile(blocks(DOCS[ROOT / "README.md"]).replace(":28", ":7"), "README.md", "exec"), found)
    assert set(found["table"].columns) == {"user_id", "at", "churn:7", "purchase:7"}


def test_every_public_name_can_be_had():
    for name in behaviour.__all__:
        assert getattr(behaviour, name) is not None
    assert set(behaviour.__all__) <= set(dir(behaviour))
    with pytest.raises(AttributeError, match="has no attribute 'Questoin'"):
        _ = behaviour.Questoin


def test_links_lead_somewhere():
    for file, text in DOCS.items():
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if "://" not in target:
                assert (file.parent / target).exists(), f"{file}: {target}"
