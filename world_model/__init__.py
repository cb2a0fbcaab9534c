"""What we believe: tokens, transformer, imagination, checkpoints and their training."""
