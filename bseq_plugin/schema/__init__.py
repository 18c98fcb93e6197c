"""The schema is the contract in types: the recipe, packed events and the base classes of parts."""
