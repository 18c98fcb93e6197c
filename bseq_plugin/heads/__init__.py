"""Heads answer what users will do, from vectors or states of an encoder."""
