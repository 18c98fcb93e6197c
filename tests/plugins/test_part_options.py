"""Options of a part: named once, as a type argument, and known to a type checker and when the part is made."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeVar

import pytest

import bseq_plugin as bseq
from bseq_plugin import PluginError, PluginManager, RecipeError, UsageError

ROOT = Path(__file__).parents[2]
CONTRACTS = ["SequenceEncoder", "SequenceLoss", "VectorIndex", "ItemEncoder", "CandidateSource", "RankingFeature"]


class Mine(bseq.PartOptions):
    window: int = 5


class Narrower(Mine):
    decay: float = 0.5


class Other(bseq.PartOptions):
    pass


@pytest.mark.parametrize("contract", CONTRACTS)
def test_options_are_the_type_argument(contract):
    base = getattr(bseq, contract)

    class Part(base[Mine]):
        name = "mine"

    class Plain(base):
        name = "plain"

    class Child(Part):
        name = "child"

    assert Part.Options is Child.Options is Mine
    assert Plain.Options is base.Options is bseq.PartOptions
    assert Part.checked_options({"window": 3}) == Mine(window=3)
    assert Plain.checked_options(None) == bseq.PartOptions()


def test_a_generic_part_between_has_the_options_of_its_variable():
    from bseq_plugin.losses.bce import BCELoss

    bound = TypeVar("bound", bound=Mine)

    class Between(bseq.SequenceEncoder[bound]):
        pass

    class Part(Between[Narrower]):
        name = "part"

    assert (Between.Options, Part.Options) == (Mine, Narrower)
    assert BCELoss.Options is bseq.PartOptions  # by the default of the variable of MatmulLoss


def test_options_written_into_the_class_may_not_contradict():
    class Same(bseq.SequenceEncoder[Mine]):
        name, Options = "same", Mine

    class Alone(bseq.SequenceEncoder):
        name, Options = "alone", Mine

    class Child(Same):
        name, Options = "child", Narrower

    assert (Same.Options, Alone.Options, Child.Options) == (Mine, Mine, Narrower)
    with pytest.raises(PluginError, match=r"Wrong is declared with options Mine, but sets Options = Other"):

        class Wrong(bseq.SequenceEncoder[Mine]):
            name, Options = "wrong", Other

    with pytest.raises(PluginError, match=r"WrongChild is declared with options Mine, but sets Options = Other"):

        class WrongChild(Same):
            name, Options = "wrong_child", Other


@pytest.mark.parametrize("argument", [int, "Mine", None])
def test_a_type_argument_that_is_no_class_of_options_is_refused(argument):
    with pytest.raises(PluginError, match=r"Wrong: SequenceEncoder\[.*names no class of options"):

        class Wrong(bseq.SequenceEncoder[argument]):
            name = "wrong"


def test_any_options_are_no_options():
    class Part(bseq.SequenceEncoder[Any]):
        name = "part"

    assert Part.Options is bseq.PartOptions


def test_a_contradiction_is_reported_when_the_plugin_is_loaded(tmp_path):
    """Beside plugins that are in order, with the names of both classes."""
    module = tmp_path / "contradicting.py"
    module.write_text(
        "import bseq_plugin as bseq\n"
        "class Mine(bseq.PartOptions): ...\n"
        "class Other(bseq.PartOptions): ...\n"
        "class Part(bseq.SequenceEncoder[Mine]):\n    name, Options = 'part', Other\n"
    )

    class Point:
        name, dist = "contradicting", None

        def load(self):
            spec = importlib.util.spec_from_file_location(self.name, module)
            spec.loader.exec_module(importlib.util.module_from_spec(spec))

    manager = PluginManager()
    manager.load_entry_points([Point()])
    [info] = manager.infos()
    for word in ("contradicting.Part", "Mine", "Other"):
        assert word in info.error


def test_what_is_given_as_options_is_checked():
    class Part(bseq.SequenceEncoder[Mine]):
        name = "mine"

        def forward(self, events):
            return events.x_TD

    given = Mine(window=2)
    assert Part(8, 12, 0.0, given).options is given
    assert Part(8, 12, 0.0).options == Part(8, 12, 0.0, {"window": 5}).options == Mine()
    with pytest.raises(RecipeError, match=r"options of 'mine': unknown key 'widnow'; the keys are: window"):
        Part(8, 12, 0.0, {"widnow": 2})
    for wrong in (Other(), 3):
        with pytest.raises(UsageError, match=rf"'mine': options are {type(wrong).__name__}; give a mapping or Mine"):
            Part(8, 12, 0.0, wrong)


def third_party(contract, option):
    """A method of a part with options that reads ``option``; abstract, so that nothing else has to be written."""
    return f"""
class My{contract}(bseq.{contract}[MyOptions]):
    name = "mine"

    def read(self) -> None:
        size: int = self.checked_options({{}}).{option}
        {"" if contract == "VectorIndex" else f"size = self.options.{option}"}
"""


def test_a_type_checker_knows_the_options_of_a_part_elsewhere(tmp_path):
    """Right options pass, of every contract; a misspelt one is an error, and hooks take parts with options."""
    head = "import bseq_plugin as bseq\n\n\nclass MyOptions(bseq.PartOptions):\n    window: int = 5\n\n"
    hook = (
        "\n@bseq.hookimpl\ndef bseq_encoders() -> list[type[bseq.SequenceEncoder]]:\n    return [MySequenceEncoder]\n"
    )
    (tmp_path / "right.py").write_text(head + "".join(third_party(c, "window") for c in CONTRACTS) + hook)
    (tmp_path / "wrong.py").write_text(head + "".join(third_party(c, "widnow") for c in CONTRACTS))
    # what the contract is written with, and what is written with the contract, takes a while to read
    skipped = ["torch", "torchrec", "numpy", "pandas", "pyarrow", "scipy"]
    skipped += [f"bseq_plugin.{room}" for room in ("model", "publishing", "ranking", "readers", "serving", "training")]
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nstrict = true\n[mypy-{','.join(f'{name}.*' for name in skipped)}]\n"
        "follow_imports = skip\nignore_missing_imports = true\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", "cache", "right.py", "wrong.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [re.sub(r":\d+:", ":", error) for error in errors] == [
        'wrong.py: error: "MyOptions" has no attribute "widnow"; maybe "window"?  [attr-defined]'
    ] * (2 * len(CONTRACTS) - 1), done.stdout + done.stderr
