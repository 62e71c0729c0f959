"""Projects, the templates they start from, and the examples they learn from."""
