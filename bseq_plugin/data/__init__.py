"""From events to vocabulary and sequences, and from these to batches."""
