"""Item encoders make a vector of an item from its row of the items table."""
