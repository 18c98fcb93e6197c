"""Training: one code path for one process and for ``torchrun``."""
