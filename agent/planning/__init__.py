"""Search: the objective, the planner, and what it searches in."""
