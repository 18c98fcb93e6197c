"""Conformance suites of heads: subclass the suite of a head's kind, set ``head``, run pytest."""
