"""A log in which some users come every other day and some have stopped coming, and a run of it on a time split."""

import bseq_behaviour
import numpy as np
import pandas as pd
import pytest
import torch

import bseq_plugin as bseq
from bseq_plugin.testing.commands import command_of

command = command_of(bseq_behaviour, "behaviour")
START = pd.Timestamp("2024-01-01", tz="UTC")
N_DAYS = 70


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The matrices of the tests are tiny: more than one thread only costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def habits(n_users=80, seed=0):
    """User u buys items of group u % 4, every other day; every fourth one stops at some day."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(n_users):
        stops = random.integers(20, N_DAYS) if user % 4 == 3 else N_DAYS
        for day in range(user % 2, int(stops), 2):
            for _ in range(int(random.integers(1, 3))):
                group = user % 4 if random.random() < 0.9 else int(random.integers(4))
                item = group * 10 + int(random.integers(10))
                time = START + pd.Timedelta(days=day, hours=9 + 3 * (user % 4), minutes=int(random.integers(60)))
                rows.append((user, item, time, float(random.integers(1, 9)), ("buy", "view")[item % 2]))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "value", "event_type"])
    return frame.sort_values("timestamp", kind="stable", ignore_index=True)


@pytest.fixture(scope="session")
def habit_frame():
    """Nobody may change it."""
    return habits()


@pytest.fixture(scope="session")
def habit_items():
    """Items 0..39 in groups of ten."""
    return pd.DataFrame({"item_id": np.arange(40), "group": [f"g{item // 10}" for item in range(40)]})


@pytest.fixture(scope="session")
def habit_run(habit_frame, tmp_path_factory):
    """Trained on the first 35 days; the log goes on for 35 more."""
    recipe = bseq.Recipe(
        encoder={"max_length": 10, "n_blocks": 1, "n_heads": 2, "feed_forward": 16, "dropout": 0.0},
        vectors={"dim": 8},
        events={"features": ()},
        split={
            "kind": "time",
            "validation_at": (START + pd.Timedelta(days=35)).isoformat(),
            "horizon_days": 7.0,
            "mask_seen": False,
        },
        training={"batch": {"users": 16}, "epochs": 4, "table": {"rate": 0.3}, "dense": {"rate": 0.01}},
    )
    return bseq.train(
        bseq.Events.from_frame(habit_frame), recipe, tmp_path_factory.mktemp("habits") / "run", progress=False
    )
