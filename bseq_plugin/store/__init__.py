"""The store keeps immutable, verified versions on a disk, one of them current, and knows no model."""
