"""Rankers against floors: whole-catalogue metrics with bootstrap intervals."""
