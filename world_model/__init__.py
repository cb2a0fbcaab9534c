"""What we believe: tokens, transformer, imagination, checkpoints and their training.

Importing the package registers the model as an environment, `gymnasium.make_vec("nextstate/Imagined-v0", num_envs=64)`.
"""

import runpy
from pathlib import Path

import gymnasium

_packages = runpy.run_path(str(Path(__file__).parents[1] / "envs" / "packages.py"))  # `envs` may be the user's
_packages["check_packages"]("envs")

gymnasium.register("nextstate/Imagined-v0", vector_entry_point="world_model.imagined_env:ImaginedEnv")
