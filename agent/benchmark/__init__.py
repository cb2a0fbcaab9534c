"""What `agent.bench` times."""
