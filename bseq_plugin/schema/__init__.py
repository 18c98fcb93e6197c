"""The schema is the contract in types: packed events, and the base class of each kind of part."""
