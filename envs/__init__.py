"""What the world is: tasks, observations, success measures, episodes and how they are kept on disk.

Importing the package registers its gymnasium ids; MuJoCo is loaded only when an environment is made. Several at once:
`gymnasium.make_vec(id, num_envs=2)` in one process, or in processes of their own, which must be started afresh,
`gymnasium.make_vec(id, num_envs=2, vectorization_mode="async", vector_kwargs={"context": "spawn"})`.
"""

import logging

import gymnasium

# robosuite warns of optional robots at every start, in the middle of the progress bars
logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)

# a fold takes 160 control steps, which leaves time for a second attempt at both corners
gymnasium.register("nextstate/FoldHalf-v0", "envs.tasks.fold_half:FoldHalf", max_episode_steps=400)
gymnasium.register("nextstate/Lift-v0", "envs.tasks.lift:Lift", max_episode_steps=120)
