"""Lengths of time in microseconds, what a log's times are in."""

DAY_US = 86_400_000_000
