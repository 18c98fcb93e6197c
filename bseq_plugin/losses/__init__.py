"""Losses of states against their targets and a shared candidate set."""
