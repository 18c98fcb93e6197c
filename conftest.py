"""For every test: one thread a process, so that files that run beside each other do not fight for the cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, which is later than this
