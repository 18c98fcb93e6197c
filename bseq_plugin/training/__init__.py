"""Training fits a model, by the same code in one process and under ``torchrun``."""
