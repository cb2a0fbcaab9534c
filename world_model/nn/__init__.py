"""Networks that know nothing of robots: the transformer, the vision codes."""
