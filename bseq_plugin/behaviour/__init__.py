"""Behaviour answers what users will do and are like: propensity, demand, segments, anomalies."""
