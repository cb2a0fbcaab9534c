import logging
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from envs.sim import stability
from envs.types import SimulationError

MODEL = """
<mujoco>
  <size memory="{memory}"/>
  <worldbody>
    <geom type="plane" size="9 9 .1"/>
    <body pos="0 0 .04"><freejoint/><geom name="ball" size=".05"/></body>
    <body pos="0 0 1"><joint name="hinge"/><geom size=".05" pos=".1 0 0"/></body>
    {balls}
  </worldbody>
  <actuator><motor joint="hinge"/></actuator>
</mujoco>
"""


def compiled(memory: str = "1M", balls: int = 0) -> tuple[mujoco.MjModel, mujoco.MjData]:
    places = (f"{0.2 * (i % 10) - 1} {0.2 * (i // 10) - 1} .04" for i in range(balls))
    bodies = "".join(f'<body pos="{place}"><freejoint/><geom size=".05"/></body>' for place in places)
    model = mujoco.MjModel.from_xml_string(MODEL.format(memory=memory, balls=bodies))
    stability.disable_reset(model)
    return model, mujoco.MjData(model)


@pytest.mark.parametrize(
    ("field", "value", "cause"),
    [("qpos", np.nan, "QPOS"), ("qvel", 1e11, "QVEL"), ("xfrc_applied", 1e30, "QACC"), ("ctrl", np.inf, "CTRL")],
)
def test_a_bad_state_is_an_error_and_stays_visible(field, value, cause, tmp_path, monkeypatch, caplog):
    """MuJoCo starts the simulation again in the middle of a step: an episode then goes on from another state, with a
    file in the user's folder as the only trace."""
    monkeypatch.chdir(tmp_path)
    model, data = compiled()
    for _ in range(5):
        mujoco.mj_step(model, data)
    stability.check_state(model, data, step=1)
    getattr(data, field)[:] = value
    with caplog.at_level(logging.WARNING), pytest.raises(SimulationError, match=f"control step 2: .*{cause}"):
        for _ in range(2):  # as a control step does it
            mujoco.mj_step1(model, data)
            stability.check_warnings(data, step=2)
            mujoco.mj_step2(model, data)
    assert data.time >= 5 * model.opt.timestep, "it started again"
    assert cause in caplog.text and not list(tmp_path.iterdir())


def test_a_state_that_the_next_step_would_refuse():
    """The last substep of a control step may leave a bad state, which would be recorded before anybody looks."""
    model, data = compiled()
    mujoco.mj_forward(model, data)
    data.qvel[0] = np.nan
    stability.check_warnings(data, step=1)
    with pytest.raises(SimulationError, match="QVEL"):
        stability.check_state(model, data, step=1)


def test_contacts_that_are_dropped_are_counted():
    """Things that fall through the table because the memory was full, with nothing in the data that says so."""
    model, data = compiled()
    mujoco.mj_step(model, data)
    assert stability.dropped(data) == {}
    model, data = compiled(memory="160K", balls=60)
    mujoco.mj_step(model, data)
    stability.check_warnings(data, step=1)  # noted, and no error
    told = stability.dropped(data)
    assert told and set(told) <= set(stability.DROPPED) and all(type(count) is int for count in told.values())


def test_somebody_elses_handler_stays():
    """Importing this package must not take over what a program does with MuJoCo's warnings."""
    program = (
        "import mujoco; ours = print; mujoco.set_mju_user_warning(ours); from envs.sim import stability; "
        "assert mujoco.get_mju_user_warning() is ours; mujoco.set_mju_user_warning(None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
