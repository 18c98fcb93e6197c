"""Vector indexes find the items whose vectors have the largest inner product with an interest."""
