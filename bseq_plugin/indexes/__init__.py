"""Vector indexes: the built-in backends of ``VectorIndex`` (exact, faiss_cpu, faiss_gpu)."""
