"""Episodes on disk, and how they are varied for training."""
