"""The simulated table: robot, looks, rendering, exact state."""
