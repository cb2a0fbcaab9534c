"""Environments as LeRobot's EnvHub takes them: `make_env` of `env.py` for MuJoCo, of `imagined.py` for the dream."""
