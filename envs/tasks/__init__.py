"""One task a file: its world, its wording, its success and its progress."""
