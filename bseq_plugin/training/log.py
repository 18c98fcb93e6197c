"""What a run tells while it goes on: progress bar, TensorBoard scalars, and one JSON line an epoch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from bseq_plugin.console import Plain, counting, stepping
from bseq_plugin.files import write_text

Report = Callable[[float, int], None]  # (loss, events of the step)


class RunLog:
    """Logs of one run, for rank 0; on other ranks (``enabled=False``) it does nothing.

    ``metrics.jsonl`` has one object an epoch; a resumed run appends to it.
    """

    def __init__(self, run: Path, *, enabled: bool, progress: bool, epochs: int, resumed_after: int = 0) -> None:
        self.enabled = enabled
        self.path = run / "metrics.jsonl"
        self.console = Plain(stderr=True, quiet=not (progress and enabled))
        self.epochs = epochs
        self._tensorboard: Any = None
        if enabled:
            self._drop_lines_after(resumed_after)
            self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_after + 1)

    def close(self) -> None:
        """Write the end of TensorBoard's file."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    @contextmanager
    def epoch(self, number: int, steps: int, done: int = 0) -> Iterator[Report]:
        """Show a bar over the steps of an epoch, ``done`` of them already; call the yielded function after each."""
        started, events, seen, total = time.perf_counter(), 0, 0, 0.0
        with stepping(self.console) as bar:  # a log file gets one line an epoch and no bars
            task = bar.add_task(f"epoch {number}/{self.epochs}", total=steps, completed=done, state="")

            def report(loss: float, n_events: int) -> None:
                nonlocal events, seen, total
                events, seen, total = events + n_events, seen + 1, total + loss
                rate = events / (time.perf_counter() - started)
                bar.update(task, advance=1, state=f"loss {total / seen:.4f}  {rate:,.0f} events/s")

            yield report

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a progress bar over ``total`` of something; call the yielded function with how many more are done."""
        with counting(what, total, self.console) as advance:
            yield advance

    def write(self, line: dict[str, Any], note: str = "") -> None:
        """Write one epoch's figures to the terminal, TensorBoard and ``metrics.jsonl``."""
        if not self.enabled:
            return
        epoch = line["epoch"]
        for key, value in line.items():
            if isinstance(value, float):
                self._tensorboard.add_scalar(key, value, epoch)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        figures = "  ".join(f"{key} {value:.4f}" for key, value in line.items() if "@" in key)
        self.console.print(
            f"epoch {epoch:>3}  loss {line['loss']:.4f}  {figures}  {line['events_per_second']:,.0f} events/s {note}"
        )

    def _drop_lines_after(self, epoch: int) -> None:
        """A killed run may have logged an epoch whose checkpoint was never finished: it will be logged again."""
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _epoch_of(line) <= epoch]
        write_text(self.path, "".join(f"{line}\n" for line in kept))


def _epoch_of(line: str) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except (json.JSONDecodeError, KeyError, TypeError):  # cut off by a kill
        return float("inf")
