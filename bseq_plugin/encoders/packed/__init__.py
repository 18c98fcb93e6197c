"""Packed attention works on events of many users in one tensor: what sees what, in which layout, in blocks."""
