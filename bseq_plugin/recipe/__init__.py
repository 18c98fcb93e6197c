"""The recipe: ten typed sections that decide what a run learns, and how they are read from files and settings."""
