"""Losses of states against their targets and negatives that a batch shares."""
