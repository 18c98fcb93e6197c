"""How large: catalogues and logs beyond memory, and what a step costs as they grow."""
