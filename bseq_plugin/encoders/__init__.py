"""Sequence encoders read the events of a history and give a state for each."""
