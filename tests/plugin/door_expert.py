"""An expert for robosuite's Door: hooks the open hand over the handle, turns it down and pulls."""

import numpy as np


class DoorExpert:
    execute, privileged = 1, True

    def init(self, instruction, seed=0):
        return None

    def act(self, observation, state, scene):
        seen = scene.observation
        x, y, z = seen["robot0_eef_pos"] - seen["handle_pos"] - [0, 0.022, 0]
        turned, open_by = seen["handle_qpos"][0], seen["hinge_qpos"][0]
        aside = np.hypot(x, y)
        if open_by > 0.34:
            move = (0, 0, 0)
        elif aside < 0.06 and z < (0.05 if turned > 0.05 or open_by > 0.03 else 0.04):
            down = (np.sin(turned) - 10 * x, -10 * y, -np.cos(turned))  # along the handle's arc
            move = (-10 * x, 1, 0) if turned > 1.2 or open_by > 0.05 else down
        elif z > 0.035:
            move = (-15 * x, -15 * y, -1 if aside < 0.02 else 10 * (0.07 - z))
        else:
            move = (0, 0.3 * (y < 0.08), 1)
        return np.r_[np.clip(move, -1, 1), 0, 0, 0, -1].astype(np.float32)[None], state
