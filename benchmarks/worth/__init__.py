"""What ranking features and an attached encoder are worth to a ranker."""
