"""What users will do and are like: labels as of an instant, propensities, demand, anomalies, segments, explanations."""
