"""Events are a log: validated events, the vocabulary of its ids, and the histories of its users."""
