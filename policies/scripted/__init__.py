"""Experts that read the simulator's truth, one a task."""
