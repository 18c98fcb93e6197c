"""The store: immutable, verified versions on a disk, one of them current. It knows nothing of models."""
