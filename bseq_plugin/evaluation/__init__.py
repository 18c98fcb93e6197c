"""Evaluation measures a model beside baselines on the whole catalogue, with bootstrap intervals."""
