"""Training: what is read, what is taught, by which optimizers, and how a run is told and taken up again."""
