"""Reports are pictures for people; matplotlib is imported where one is drawn."""
