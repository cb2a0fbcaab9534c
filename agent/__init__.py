"""The mind, and every verb that crosses rooms."""
