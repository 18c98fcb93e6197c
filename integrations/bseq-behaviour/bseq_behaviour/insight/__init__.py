"""What users are like: segments, anomalies, explanations."""
