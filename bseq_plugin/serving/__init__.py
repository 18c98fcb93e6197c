"""Serving answers from a store: interests of histories, search, filters, sources and their blend."""
