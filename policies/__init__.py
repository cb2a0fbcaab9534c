"""Acting without search: the policy protocol, the one rollout loop, the scripted experts."""
