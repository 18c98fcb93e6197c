"""A process that publishes the same run again and again, while something fails: what the crash tests start.

    python publisher.py fail RUN STORE FIRST STEP      the n-th operation fails, n = FIRST, FIRST + STEP, ...
    python publisher.py limit RUN STORE FIRST STEP     files can't grow beyond n bytes
    python publisher.py kill RUN STORE TIMES SEED      a child is killed while it publishes

Ends with 1 and the reason if the store is ever anything but old or new. Prints one JSON object.
"""

import ctypes
import errno
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from bseq_plugin import InterestModel, Retriever, Sequences, StoreError
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.store.store import Store

ERRORS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT]


def read(run):
    model = InterestModel.from_run(run)
    return model, Sequences.load(run / "sequences.parquet", model.vocabulary)


def whole(store, n):
    """The current version's name, every byte of it checked; now and then served too."""
    version = store.current()
    if n % 20 == 0:
        answer = Retriever.open(store).retrieve([100, 101], k=3)
        if len(answer) != 6:
            sys.exit(f"step {n}: {len(answer)} candidates")
    leftovers = [str(path) for path in store.path.rglob(".tmp-*")]
    if leftovers:
        sys.exit(f"step {n}: left behind {leftovers}")
    return version.name


def one_failure(model, histories, store, n):
    """(what happened, the message) of publishing once while a failure is armed."""
    try:
        return "published", publish_model(model, histories, store, index="faiss_cpu")
    except StoreError as error:
        return "visible" if "is visible" in str(error) else "refused", str(error)


def fail(run, path, first, step):
    """Every operation that publishing does, made to fail in turn."""
    model, histories = read(run)
    store, shim, n, seen = Store(path), ctypes.CDLL(None), first, {}
    old = publish_model(model, histories, store, index="faiss_cpu")
    while True:
        shim.fail_nth_arm(ctypes.c_long(n), ERRORS[n % len(ERRORS)], os.fsencode(path))
        happened, text = one_failure(model, histories, store, n)
        n_operations = shim.fail_nth_disarm()
        check(store, n, old, happened, text)
        old = store.current_name()
        if n_operations < n:
            return {"operations": n_operations, "happened": seen}
        seen[happened] = seen.get(happened, 0) + 1
        n += step


def limit(run, path, first, step):
    """The kernel refuses to let any file grow beyond n bytes, whoever writes it and however."""
    model, histories = read(run)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store, n, seen = Store(path), first, {}
    old = publish_model(model, histories, store, index="faiss_cpu")
    largest = max(file.stat().st_size for file in store.folder(old).iterdir())
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    while n < largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
        happened, text = one_failure(model, histories, store, n)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        check(store, n, old, happened, text)
        if happened != "refused":
            sys.exit(f"limit {n} of {largest}: {happened}")
        seen[happened] = seen.get(happened, 0) + 1
        n += step
    return {"operations": largest, "happened": seen}


def check(store, n, old, happened, text):
    now = whole(store, n)
    if (now == old) != (happened == "refused"):
        sys.exit(f"step {n}: {happened} ({text}), but {old} became {now}")


def kill(run, path, times, seed):
    """A child publishes for ever and is killed at a random moment; forked, so that the model is read once only."""
    model, histories = read(run)
    store, randomness = Store(path), random.Random(seed)
    old = publish_model(model, histories, store, index="faiss_cpu")
    longest, changed = 0.1, 0
    for n in range(times):
        child = os.fork()
        if child == 0:
            while True:
                publish_model(model, histories, store, index="faiss_cpu")
        time.sleep(randomness.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        now = store.current().name  # never falls back: CURRENT always names a whole version
        changed += now != old
        longest *= 0.95 if now != old else 1.05  # on any machine: about half of them are killed before they are through
        old = now
        if n % 20 == 0:
            publish_model(model, histories, store, index="faiss_cpu")  # not hindered by the dead
            old = whole(store, n)
    return {"kills": times, "changed": changed}


if __name__ == "__main__":
    torch.set_num_threads(1)
    how, run, path, *numbers = sys.argv[1:]
    print(json.dumps({"fail": fail, "limit": limit, "kill": kill}[how](Path(run), Path(path), *map(int, numbers))))
