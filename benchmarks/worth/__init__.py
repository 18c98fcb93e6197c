"""Parts of benchmarks/ranking_worth.py."""
