"""Data turns a log into the batches of a training, and says what is held out."""
