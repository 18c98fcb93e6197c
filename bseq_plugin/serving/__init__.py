"""Answers from a store: interests of histories, search, filters, candidate sources and how they are blended."""
