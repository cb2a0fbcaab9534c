"""robosuite's arm controller (OSC_POSE) and gripper command, bit for bit, at a quarter of the cost.

robosuite runs its controller at every physics substep: each time it looks up names, computes six Jacobians and a dense
mass matrix of the whole model. Here arrays are looked up once an episode, and what cannot change within a control step
is computed once a control step. What remains are robosuite's own operations on the same numbers in the same order,
with its own compiled functions, so the torques are equal to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
import robosuite.utils.transform_utils as T
from robosuite.environments.robot_env import RobotEnv
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error


@dataclass(frozen=True)
class Reading:
    """What the controller reads of the arm; the world frame, SI units, J = 7 joints."""

    position: np.ndarray  # (3,) the grip site
    rotation: np.ndarray  # (3, 3)
    velocity: np.ndarray  # (6,) linear, then angular
    joint_pos: np.ndarray  # (J,)
    joint_vel: np.ndarray  # (J,)
    jacobian: np.ndarray  # (6, J) of the grip site: linear, then angular
    mass_matrix: np.ndarray  # (J, J)


class ArmController:
    """Turns an action into actuator commands, for one episode of a robosuite world with a Panda.

    At every substep, between `mj_step1` and `mj_step2`: `read`, then at the first one `set_goal`, then `command`.
    Nothing is remembered from one control step to the next. At the first substep after a reset robosuite goes by what
    its controller read during the reset, before the state was complete: use `at_reset` there instead of `read`.
    """

    def __init__(self, world: RobotEnv) -> None:
        """Look up names and arrays. The world has just been reset, and `mj_forward` called."""
        robot, model, data = world.robots[0], world.sim.model._model, world.sim.data._data
        self._arm, self._hand, self._gripper = (
            robot.part_controllers["right"], robot.part_controllers["right_gripper"], robot.gripper["right"]
        )  # fmt: skip
        self._model, self._data = model, data
        arm, prefix = self._arm, f"{self._arm.naming_prefix}{self._arm.part_name}"
        base = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, f"{prefix}_center")
        self._site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, arm.ref_name)
        # robosuite's default for the Panda; nothing else is implemented
        assert (arm.name, arm.impedance_mode, arm.input_type, arm.input_ref_frame, arm._goal_update_mode) == (
            "OSC_POSE", "fixed", "delta", "base", "achieved"
        )  # fmt: skip
        assert arm.interpolator_pos is None and arm.interpolator_ori is None and arm.uncoupling and arm.lite_physics
        assert model.body_weldid[model.site_bodyid[base]] == 0, "the base moves"

        self._origin, self._origin_rotation = data.site_xpos[base].copy(), data.site_xmat[base].reshape(3, 3).copy()
        self._to_origin = T.pose_inv(T.make_pose(self._origin, self._origin_rotation))  # (4, 4) world to base
        dofs, actuators = _range(arm.qvel_index), _range(robot._ref_actuators_indexes_dict["right"])
        self._dofs, self._gravity = dofs, data.qfrc_bias[dofs]
        self._torque, (self._torque_min, self._torque_max) = data.ctrl[actuators], model.actuator_ctrlrange[actuators].T
        fingers = _range(robot._ref_actuators_indexes_dict["right_gripper"])
        self._fingers, self._fingers_range = data.ctrl[fingers], model.actuator_ctrlrange[fingers].T
        self._mass_addresses = _mass_addresses(model, dofs)

        joints = dofs.stop - dofs.start
        self._full_jacobian = np.empty((6, model.nv))
        self._mass = np.empty((joints, joints))
        self._error, self._wrench, self._decoupled = np.empty(6), np.empty(6), np.empty(6)
        self.at_reset = Reading(
            arm.ref_pos.copy(), arm.ref_ori_mat.copy(), np.concatenate([arm.ref_pos_vel, arm.ref_ori_vel]),
            arm.joint_pos.copy(), arm.joint_vel.copy(), arm.J_full.copy(), arm.mass_matrix.copy(order="F"),
        )  # fmt: skip
        # pose and joints are views of MuJoCo's arrays; the mass matrix is in Fortran order, as in robosuite
        self._now = Reading(
            data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3), np.empty(6),
            data.qpos[_range(arm.qpos_index)], data.qvel[dofs], np.empty((6, joints)), self._mass.T,
        )  # fmt: skip

    def read(self) -> Reading:
        """The arm after `mj_step1`. The arrays are reused: valid until the next substep."""
        now, full, data = self._now, self._full_jacobian, self._data
        mujoco.mj_jacSite(self._model, data, full[:3], full[3:], self._site)
        # two products, as in robosuite: one over six rows may add in another order
        np.dot(full[:3], data.qvel, out=now.velocity[:3])
        np.dot(full[3:], data.qvel, out=now.velocity[3:])
        now.jacobian[:] = full[:, self._dofs]
        np.take(data.qM, self._mass_addresses, out=self._mass)
        return now

    def set_goal(self, action: np.ndarray, reading: Reading) -> None:
        """Set the target pose, relative to that of reading, and command the fingers. action: (A,) in [-1, 1]."""
        delta = self._arm.scale_action(action[:6])
        # robosuite keeps its goal in the frame of the base
        position = self._to_origin.dot(T.make_pose(reading.position, np.eye(3)))[:3, 3] + delta[:3]
        turn = T.quat2mat(T.axisangle2quat(delta[3:6]))
        rotation = np.dot(turn, self._to_origin.dot(T.make_pose(reading.position, reading.rotation))[:3, :3])
        self._goal_position = self._origin + np.dot(self._origin_rotation, position)
        self._goal_rotation = np.dot(self._origin_rotation, rotation)

        opening = self._hand.scale_action(self._gripper.format_action(action[6:]))
        low, high = self._hand.actuator_min, self._hand.actuator_max
        self._fingers[:] = np.clip(0.5 * (high + low) + 0.5 * (high - low) * opening, *self._fingers_range)

    def command(self, reading: Reading) -> None:
        """Write the torques that drive the arm to its target into MuJoCo's `ctrl`."""
        arm, error, wrench, decoupled = self._arm, self._error, self._wrench, self._decoupled
        np.subtract(self._goal_position, reading.position, out=error[:3])
        error[3:] = orientation_error(self._goal_rotation, reading.rotation)
        np.multiply(error, arm.kp, out=wrench)
        wrench -= reading.velocity * arm.kd
        jacobian, mass = reading.jacobian, reading.mass_matrix
        _, inertia, rotary_inertia, nullspace = opspace_matrices(mass, jacobian, jacobian[:3], jacobian[3:])
        np.dot(inertia, wrench[:3], out=decoupled[:3])
        np.dot(rotary_inertia, wrench[3:], out=decoupled[3:])
        torque = np.dot(jacobian.T, decoupled)
        torque += self._gravity
        torque += nullspace_torques(mass, nullspace, arm.initial_joint, reading.joint_pos, reading.joint_vel)
        np.maximum(torque, self._torque_min, out=torque)
        np.minimum(torque, self._torque_max, out=self._torque)


def _range(indices: list[int]) -> slice:
    """Consecutive indices as a slice, which gives a view where a list gives a copy."""
    assert list(indices) == list(range(indices[0], indices[-1] + 1)), f"not consecutive: {indices}"
    return slice(indices[0], indices[-1] + 1)


def _mass_addresses(model: mujoco.MjModel, dofs: slice) -> np.ndarray:
    """Indices into MuJoCo's sparse `qM` of the mass matrix of dofs, (J, J): `mj_fullM`, given indices for values."""
    dense = np.empty((model.nv, model.nv))
    mujoco.mj_fullM(model, dense, np.arange(1.0, model.nM + 1))
    addresses = dense[dofs, dofs].astype(int) - 1
    assert (addresses >= 0).all(), "the joints of an arm are a chain: each pair has an entry"
    return addresses
