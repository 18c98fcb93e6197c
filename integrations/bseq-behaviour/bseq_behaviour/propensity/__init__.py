"""Yes-or-no questions about the days after an instant, answered by heads on frozen user vectors."""
