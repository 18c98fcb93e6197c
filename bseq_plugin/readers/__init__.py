"""Readers recognise a source of events and read it; plugins are asked before the built-in ones."""
