from dataclasses import replace

import numpy as np
import pytest

from envs.sim.state import SimState

STATE = SimState(
    "Lift train 0000000001", model=np.array([0.002, 20.5]), warnings=np.array([0, 3], np.int32),
    gripper_command=np.array([-0.2, 0.2]), task=np.zeros(0), physics=np.array([0.1, 1e-300, np.pi]),
)  # fmt: skip


def test_flat_and_back_is_exact():
    """A rounded or shifted part gives another future."""
    flat = STATE.flat()
    other = replace(STATE, warnings=np.zeros(2, np.int32), gripper_command=np.zeros(2), physics=np.zeros(3))
    back = other.with_values(flat)
    assert flat.dtype == np.float64 and np.array_equal(back.flat(), flat)
    assert back.warnings.dtype == np.int32 and np.array_equal(back.physics, STATE.physics)


def test_a_state_of_another_model_is_refused():
    """Numbers of another model that fit by chance, or shift everything by one."""
    with pytest.raises(ValueError, match=r"another version of the model: it is \(10,\), where .* \(9,\)"):
        STATE.with_values(np.append(STATE.flat(), 0))
    slower = replace(STATE, model=np.array([0.004, 20.5]))
    with pytest.raises(ValueError, match="another version of the model: its time step and mass are 4 ms"):
        STATE.with_values(slower.flat())
