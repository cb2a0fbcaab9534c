"""What the world is: tasks, observations, success measures, episodes and how they are kept on disk.

Importing the room registers its gymnasium ids; MuJoCo is loaded only when an environment is made.
"""

import logging

import gymnasium

# robosuite warns of optional robots at every start, in the middle of the progress bars
logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)

gymnasium.register("nextstate/FoldHalf-v0", "envs.tasks.fold_half:FoldHalf")
gymnasium.register("nextstate/Lift-v0", "envs.tasks.lift:Lift")
