"""MuJoCo's own warnings: a bad state is an error, what did not fit in its memory is counted, nothing goes to a file.

By itself MuJoCo resets an unstable simulation in the middle of a step, says so once, and writes MUJOCO_LOG.TXT into the
folder that the user happens to be in. `disable_reset` ends the first, importing this module the last.
"""

from __future__ import annotations

import logging

import mujoco

from envs.types import SimulationError

_logger = logging.getLogger(__name__)

# Those that come first in a step come last: where two are set, an earlier step's end was the cause.
UNSTABLE = tuple(
    int(warning)
    for warning in (
        mujoco.mjtWarning.mjWARN_BADCTRL, mujoco.mjtWarning.mjWARN_BADQACC, mujoco.mjtWarning.mjWARN_BADQPOS,
        mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_INERTIA,
    )
)  # fmt: skip
DROPPED = {
    "contacts_dropped": int(mujoco.mjtWarning.mjWARN_CONTACTFULL),
    "constraints_dropped": int(mujoco.mjtWarning.mjWARN_CNSTRFULL),
}


def disable_reset(model: mujoco.MjModel) -> None:
    """Let a bad state stay as it is, instead of starting the simulation again in the middle of a step."""
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET


def check_warnings(data: mujoco.MjData, step: int) -> None:
    """Raise SimulationError if MuJoCo has found a bad state. step: the control step to name, the first is 1."""
    counts = data.warning.number
    if not counts.any():
        return
    for warning in UNSTABLE:
        if counts[warning]:
            cause = mujoco.mju_warningText(warning, int(data.warning.lastinfo[warning]))
            raise SimulationError(
                f"control step {step}: {cause} This episode cannot go on: reset the environment, or load an earlier "
                "state. Look at what moved it there: an action, a state that was written, the model."
            )


def check_state(model: mujoco.MjModel, data: mujoco.MjData, step: int) -> None:
    """The same for the state and the accelerations as they are now, which MuJoCo would look at in its next step."""
    for look in (mujoco.mj_checkPos, mujoco.mj_checkVel, mujoco.mj_checkAcc):
        look(model, data)
        check_warnings(data, step)


def dropped(data: mujoco.MjData) -> dict[str, int]:
    """How often in this episode contacts or constraints did not fit in MuJoCo's memory; only what happened."""
    counts = data.warning.number
    return {name: int(counts[warning]) for name, warning in DROPPED.items() if counts[warning]}


# A handler that somebody else has set stays.
if mujoco.get_mju_user_warning() is None:
    mujoco.set_mju_user_warning(_logger.warning)
