"""Policies learnt from episodes alone, without a model of the world: the baselines."""
