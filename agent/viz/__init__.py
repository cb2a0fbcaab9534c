"""Films and figures."""
