"""Data turns events into a vocabulary, histories and the batches of a training."""
