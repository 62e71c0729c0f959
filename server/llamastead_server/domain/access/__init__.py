"""Who may do what, and how often: rights, tokens, limits."""
