"""Events -> vocabulary and sequences -> batches."""
