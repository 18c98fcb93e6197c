"""Whether it holds: suites of tests, with a verdict for each fault or cell."""
