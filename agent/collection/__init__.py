"""Ways to record episodes beside plain rollouts."""
