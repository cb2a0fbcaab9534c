"""Everything that comes from robosuite, imported in one place so that a missing one is explained in one line."""

from envs import preflight

try:
    import robosuite.macros as macros
    from robosuite.environments.manipulation.lift import Lift as RobosuiteLift
    from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
    from robosuite.models.arenas import TableArena
    from robosuite.models.tasks import ManipulationTask
    from robosuite.utils.mjcf_utils import xml_path_completion
except ModuleNotFoundError as error:
    if error.name != "robosuite":
        raise
    raise ModuleNotFoundError(preflight.ROBOSUITE_MISSING, name="robosuite") from None

__all__ = (
    "ManipulationEnv", "ManipulationTask", "RobosuiteLift", "TableArena", "robot_options", "xml_path_completion",
)  # fmt: skip


def robot_options(control_hz: float) -> dict:
    """The robosuite arguments that all worlds share: a Panda, nothing rendered by robosuite itself."""
    macros.CONSOLE_LOGGING_LEVEL = None
    return {
        "robots": "Panda", "has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False,
        "control_freq": control_hz, "ignore_done": True, "hard_reset": True, "renderer": "mujoco",
    }  # fmt: skip
