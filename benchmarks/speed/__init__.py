"""How fast: training steps, evaluation, retrieval, ranking features, and the kernels below them."""
