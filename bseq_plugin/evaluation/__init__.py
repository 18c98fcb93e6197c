"""Rankers against baselines: whole-catalogue metrics with bootstrap intervals."""
