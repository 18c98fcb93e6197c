"""Sequence encoders: events in, one state an event out."""
