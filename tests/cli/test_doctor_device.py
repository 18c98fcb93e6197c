"""``bseq doctor`` finds what it is for, each with a remedy. Faults are put where the checks look."""

import json

import pytest

from bseq_plugin.doctor import diagnosis
from bseq_plugin.doctor.diagnosis import Finding, diagnose


def found(name, *checks):
    return [finding for check in checks for finding in check() if finding.what == name]


@pytest.fixture
def installed(monkeypatch):
    """A function that replaces versions of distributions; None = not installed."""
    true = diagnosis.version_of

    def put(**versions):
        names = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(diagnosis, "version_of", lambda name: names[name] if name in names else true(name))

    return put


@pytest.mark.parametrize(
    ("versions", "check", "what", "told", "remedy"),
    [
        ({"fbgemm_gpu_cpu": "1.7.0"}, diagnosis._torch_pair, "fbgemm", "built for torch 2.12", "install torch 2.12.*"),
        ({"torch": "2.12.1"}, diagnosis._torch_pair, "fbgemm", "here is 2.12.1", "or fbgemm 1.7"),
        ({"torch": None}, diagnosis._torch_pair, "torch", "not installed", "pip install torch"),
        ({"torchrec": None}, diagnosis._torchrec, "torchrec", "not installed", "--no-deps torchrec"),
        ({"fbgemm_gpu": "1.8.0"}, diagnosis._fbgemm_wheels, "fbgemm wheels", "fbgemm-gpu-cpu", "uninstall both"),
        ({"faiss_gpu": "1.15.1"}, diagnosis._faiss, "faiss wheels", "faiss-cpu and faiss-gpu", "uninstall all"),
    ],
)
def test_versions_and_wheels(installed, versions, check, what, told, remedy):
    installed(**versions)
    (finding,) = found(what, check)
    assert finding.state == "bad"
    assert told in finding.found
    assert remedy in finding.remedy


def test_a_torch_without_the_backend_it_needs(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_gloo_available", lambda: False)
    (finding,) = found("backends", diagnosis._backends)
    assert (finding.state, "gloo is missing" in finding.found, bool(finding.remedy)) == ("bad", True, True)


def test_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 10_000)
    (finding,) = found("threads", diagnosis._threads)
    assert (finding.state, finding.remedy.startswith("set OMP_NUM_THREADS=")) == ("note", True)


def test_what_the_device_can_is_tried_not_known(monkeypatch):
    """The lists are those a recipe takes: what works is offered, and what is offered works or is told of."""
    findings = {finding.what: finding for finding in diagnosis._devices()}
    assert set(findings["sharding"].found.split(", ")) == {"row_wise", "table_wise", "column_wise"}
    assert findings["table optimizers"].found == "rowwise_adagrad, adagrad, sgd"
    assert "not supported in CPU mode" in findings["optimizer adam"].found
    assert "pools a history" in findings["sharding data_parallel"].found
    # a step that leaves its row as it was is no step
    monkeypatch.setattr("bseq_plugin.doctor.capabilities.TABLE_OPTIMIZERS", {"none": "none"})
    findings = {finding.what: finding for finding in diagnosis._devices()}
    assert findings["table optimizers"].state == "bad"


def test_two_processes_that_can_not_meet(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-network")
    (finding,) = diagnosis._two_processes()
    assert finding.state == "bad"
    assert finding.found.startswith("can't train together (gloo): rank ")
    assert "GLOO_SOCKET_IFNAME" in finding.remedy
    monkeypatch.setattr(diagnosis, "SMOKE_SECONDS", 0.01)
    (finding,) = diagnosis._two_processes()
    assert "did not train a step within" in finding.found


def test_here_all_is_well_and_every_finding_has_a_remedy(python):
    done = python("-m", "bseq_plugin.cli.main", "doctor", "--json", timeout=240)
    findings = [Finding(**finding) for finding in json.loads(done.stdout)]
    assert (done.returncode, [f for f in findings if f.state == "bad"]) == (0, [])
    assert [f for f in findings if f.state != "ok" and not f.remedy] == []
    (together,) = [f for f in findings if f.what == "two processes"]
    assert "train a step together" in together.found
    assert {f.what for f in diagnose(smoke=False)} == {f.what for f in findings} - {"two processes"}
