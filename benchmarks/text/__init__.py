"""Items that training never sees: who they are, what is trained without them, how well they are found."""
