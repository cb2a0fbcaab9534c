"""What is taught and by which optimizers."""
