"""Losses score the states of a batch against their targets and a shared set of negatives."""
