import pytest


@pytest.fixture(scope="session")
def cyclic():
    """Two cycles, 1 -> 2 -> 3 -> 1 and 4 -> 5 -> 6 -> 4: whoever reads the last item knows the next one."""
    import numpy as np

    from bseq_plugin import Events

    users, items = [], []
    for user in range(60):
        first, cycle = user % 3, 3 * (user // 3 % 2)
        for place in range(6 + user % 4):
            users.append(user)
            items.append(1 + cycle + (first + place) % 3)
    return Events.in_order(np.array(users), np.array(items))


@pytest.fixture(scope="session")
def read_lines():
    """A function that reads ``metrics.jsonl`` without what differs from run to run by nature."""
    import json

    def read(run):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in ("seconds", "events_per_second")} for line in lines]

    return read


@pytest.fixture(scope="session")
def weights():
    """A function that gives the bytes of a run's model files."""

    def read(run):
        return {name: (run / "model" / name).read_bytes() for name in ("encoder.safetensors", "items.safetensors")}

    return read


@pytest.fixture
def ranks(python, tmp_path):
    """A function that runs jobs of ``scale_jobs.py`` and gives their results: name -> one a rank."""
    import json
    from pathlib import Path

    def run(jobs, timeout=240):
        folder = tmp_path / "jobs"
        folder.mkdir(exist_ok=True)
        (folder / "jobs.json").write_text(json.dumps({"folder": str(folder), "jobs": jobs}))
        done = python(Path(__file__).with_name("scale_jobs.py"), folder / "jobs.json", timeout=timeout)
        found = {job["name"]: folder / f"{job['name']}.json" for job in jobs}
        missing = [name for name, path in found.items() if not path.exists()]
        assert missing == [], done.stderr[-3000:]
        return {name: json.loads(path.read_text()) for name, path in found.items()}

    return run
