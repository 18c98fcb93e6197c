"""The contract in types: recipes, packed events, and the base classes of parts."""
