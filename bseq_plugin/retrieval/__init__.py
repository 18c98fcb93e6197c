"""The store of published versions, publishing, and retrieval from it."""
