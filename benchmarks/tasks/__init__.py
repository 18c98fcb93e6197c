"""Predictions about users: propensity, return, demand, anomalies, segments, next purchases."""
