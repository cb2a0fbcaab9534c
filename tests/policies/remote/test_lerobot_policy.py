"""LeRobot's policies in a process of their own: asked as LeRobot asks them, and gone when we are.

The process, what is said and how names meet are tested with `tests/lookalike`, a small package with LeRobot's names.
With LeRobot itself only `test_real_policies`, where NEXTSTATE_LEROBOT_PYTHON names an interpreter that has it.
"""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets", reason="pip install 'nextstate[serve]'")

import torch

from envs.types import CameraSpec, Observation, Spec
from policies.remote import lerobot_policy as ours
from policies.remote import lerobot_process as theirs
from policies.remote.client import ServerError
from policies.remote.lerobot_policy import LeRobotError, keys_for, lerobot_policy
from tests.pretrained import find_lookalike, pretrained
from tests.robots import ARM, HANDS, UNEVEN, made_up
from tests.served import seen, until

POISON = 0.44  # a state at which the look-alike breaks
ROOT = Path(__file__).parents[3]


@pytest.fixture
def python(monkeypatch) -> str:
    return find_lookalike(monkeypatch)


def act(policy, states, first: float = 0.25) -> tuple[np.ndarray, list]:
    return policy.act(Observation.stack([seen(first=first)] * len(states)), states)


def serving(starter: int | None = None) -> list[int]:
    """Processes that serve a LeRobot policy; starter: who started them, us where it is None."""
    command = ["ps", "-ww", "-eo", "pid=,ppid=,args="]
    rows = [line.split(None, 2) for line in subprocess.check_output(command, text=True).splitlines()]
    starter = starter or os.getpid()
    return [int(pid) for pid, parent, args in rows if int(parent) == starter and "lerobot_process.py" in args]


def test_each_robot_has_a_policy_of_its_own(python, tmp_path):
    """Catches robots that take from one queue or one memory, an episode that begins in the middle of the one before,
    and random numbers that depend on who else is there; a process that stays when the policy has gone."""
    policy = lerobot_policy(pretrained(tmp_path / "policy", HANDS), HANDS, python)
    assert policy.execute == 2, "as it was trained"
    bright = sum(float(image.mean()) for image in seen().images.values()) / 255 + len("tidy up")
    chunks, states = act(policy, [policy.init("tidy up", seed) for seed in range(3)])
    assert chunks.shape == (3, 2, 4)
    np.testing.assert_allclose(chunks[:, :, 0], 0.01, rtol=1e-6)
    np.testing.assert_allclose(chunks[:, :, 1], 0.25, rtol=1e-6)  # halved by the one processor, doubled by the other
    np.testing.assert_allclose(chunks[:, :, 2], bright, rtol=1e-5)
    assert len(set(chunks[:, 0, 3].tolist())) == 3
    later, _ = act(policy, states[1:2], first=0.3)
    np.testing.assert_allclose(later[0, :, :2], [[0.02, 0.3]] * 2, rtol=1e-6)
    del states
    again, _ = act(policy, [policy.init("tidy up", 1)])
    np.testing.assert_array_equal(again[0], chunks[1])

    with pytest.raises(ServerError, match="answered: ZeroDivisionError: it broke"):
        act(policy, [policy.init("tidy up")], first=POISON)
    assert len(serving()) == 1
    del policy
    gc.collect()
    assert not serving()


def test_a_policy_that_has_to_see_every_step(python, tmp_path):
    """Catches a diffusion policy that is shown every eighth moment and takes them for two in a row."""
    folder = pretrained(tmp_path / "policy", HANDS, n_obs_steps=2)
    policy = lerobot_policy(folder, HANDS, python)
    states = [policy.init("tidy up")]
    assert policy.execute == 1
    told = []
    for first in (0.1, 0.2, 0.3, 0.4):
        chunks, states = act(policy, states, first)
        told.append(chunks[0, 0, :2].tolist())
    np.testing.assert_allclose(told, [(0.01, 0.1), (0.01, 0.1), (0.03, 0.3), (0.03, 0.3)], rtol=1e-6)
    with pytest.raises(LeRobotError, match="has to see every control step.*policy.execute at null, it plans every 2"):
        lerobot_policy(folder, HANDS, python, execute=2)


def test_names_that_the_policy_has(python, tmp_path):
    """Catches a single camera that goes by no name, a camera that was renamed when the policy was trained, and
    `execute` that does not reach it."""
    config = {"observation.image": {"type": "VISUAL", "shape": [3, 8, 8]}}
    folder = pretrained(tmp_path / "policy", UNEVEN, {"observation.images.camera": "observation.image"},
                        input_features=config)  # fmt: skip
    policy = lerobot_policy(folder, UNEVEN, python, execute=3)
    assert policy.execute == 3
    chunks, _ = policy.act(made_up(UNEVEN).obs(slice(0, 1)), [policy.init("go")])
    assert chunks.shape == (1, 3, 4)
    with pytest.raises(LeRobotError, match="plans 4 control steps: policy.execute=5 is more"):
        lerobot_policy(folder, UNEVEN, python, execute=5)


def test_the_copies_share_their_weights():
    """Catches eight robots that need eight times the memory, or a memory that two of them share."""

    large = torch.nn.Linear(3, 3)
    large.memory = [1]
    robots = [theirs.Robot(large, object(), object(), 1) for _ in range(2)]
    for robot in robots:
        assert robot.policy is not large and robot.policy.weight is large.weight
    robots[0].policy.memory.append(2)
    assert robots[1].policy.memory == large.memory == [1]


SAID = {"policy": "act", "resizes": False, "actions": 4}
LEFT, RIGHT, STATE = "observation.images.left", "observation.images.right", "observation.state"
FITS = {LEFT: [3, 16, 16], RIGHT: [3, 24, 16], STATE: [6]}


@pytest.mark.parametrize(
    ("spec", "said", "renamed", "says"),
    [
        (HANDS, {"inputs": {**FITS, "observation.images.top": [3, 16, 16]}}, {}, r"takes `observation.images.top` "),
        (HANDS, {"inputs": {**FITS, LEFT: [3, 64, 64]}}, {}, r"`observation.images.left` \(3, 64, 64\), and the"),
        (HANDS, {"inputs": {**FITS, STATE: [7]}}, {}, r"`observation.state` \(7,\), and the robot's is \(6,\)"),
        (HANDS, {"inputs": {STATE: [7]}, "resizes": True}, {}, "and the robot's is"),
        (HANDS, {"inputs": FITS, "actions": 6}, {}, "commands 6 dimensions, and the robot takes 4"),
        (UNEVEN, {"inputs": {STATE: [6]}}, {}, "which the robot does not have"),
        (HANDS, {"inputs": {"observation.environment_state": [3]}}, {}, "takes `observation.environment_state`"),
        (HANDS, {"inputs": {**FITS, STATE: [7], LEFT: [3, 1, 1]}, "actions": 1}, {}, "left`.*state`.*commands 1"),
        (HANDS, {"inputs": FITS}, {"left": "observation.images.top"}, "takes `observation.images.left`"),
        (HANDS, {"inputs": FITS}, {"top": LEFT}, "`keys` renames top; there are left, prompt, right, state"),
        (HANDS, {"inputs": FITS}, {"right": LEFT}, "must differ from each other"),
    ],
)  # fmt: skip
def test_a_policy_of_another_robot(spec, said, renamed, says):
    """Catches a policy that acts on another camera's pictures, or an error of torch's at the first step."""
    with pytest.raises(ValueError, match=says):
        keys_for(spec, {**SAID, **said}, renamed, "folder")


def test_a_policy_of_this_robot():
    """Catches a refusal of what fits: fewer inputs than the robot has, other names, sizes that do not matter."""
    wanted = {"left": LEFT, "right": RIGHT, "state": STATE, "prompt": "task"}
    assert keys_for(HANDS, {**SAID, "inputs": FITS}, {}, "folder") == wanted
    assert keys_for(HANDS, {**SAID, "inputs": {RIGHT: [3, 24, 16]}}, {}, "folder") == wanted
    top = {**SAID, "inputs": {"observation.images.top": [3, 16, 16]}}
    assert keys_for(HANDS, top, {"left": "observation.images.top"}, "folder")["left"] == "observation.images.top"
    one = Spec((CameraSpec("side", 32, 48),), ARM.state, ARM.action, control_hz=10)
    assert keys_for(one, {**SAID, "inputs": {"observation.image": [3, 32, 48]}}, {}, "f")["side"] == "observation.image"
    assert keys_for(HANDS, {**SAID, "inputs": {LEFT: [3, 512, 512]}, "resizes": True}, {}, "folder") == wanted


def test_what_cannot_start(python, tmp_path, monkeypatch):
    """Catches a traceback of another interpreter, or none at all, where a folder, a file or LeRobot itself is missing;
    a process that stays."""
    with pytest.raises(LeRobotError, match="policy.python=/no/python cannot be started"):
        lerobot_policy(str(tmp_path), HANDS, "/no/python")
    with pytest.raises(LeRobotError, match="holds no config.json.*checkpoints/last/pretrained_model"):
        lerobot_policy(str(tmp_path), HANDS, python)
    folder = pretrained(tmp_path / "old", HANDS)
    (tmp_path / "old" / "policy_preprocessor.json").unlink()
    with pytest.raises(LeRobotError, match="holds no policy_preprocessor.json"):
        lerobot_policy(folder, HANDS, python)
    folder = pretrained(tmp_path / "deadly", HANDS, type="deadly")
    with pytest.raises(LeRobotError, match="ended before it had loaded the policy .out of memory, or worse"):
        lerobot_policy(folder, HANDS, python)
    folder = pretrained(tmp_path / "policy", HANDS)
    with pytest.raises(ValueError, match="is of another robot"):
        lerobot_policy(folder, ARM, python)
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(LeRobotError, match="cannot import LeRobot.*No module named 'lerobot'.*pip install lerobot"):
        lerobot_policy(folder, HANDS, python)
    assert not serving()


def test_our_own_interpreter(monkeypatch):
    """Catches `No module named 'lerobot'`, which does not say that it needs an environment of its own."""
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs a Python that has LeRobot.*venv.*set policy.python="):
        lerobot_policy("folder", HANDS)
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: object())
    assert ours.own_python() == sys.executable


STARTER = """
import sys, time
from policies.remote.lerobot_policy import lerobot_policy
from tests.robots import HANDS
policy = lerobot_policy(sys.argv[1], HANDS, sys.executable)
print(policy.address, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    """A zombie, which nobody waits for in a container, is not."""
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(told) and not told.startswith("Z")


def test_it_ends_when_we_are_killed(python, tmp_path):
    """Catches an orphan that holds gigabytes of a GPU after the command that started it was killed."""
    folder = pretrained(tmp_path / "policy", HANDS)
    starter = subprocess.Popen([python, "-c", STARTER, folder], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert starter.stdout.readline().startswith("ws://127.0.0.1:")
        (served,) = serving(starter.pid)
        assert alive(served)
    finally:
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        starter.stdout.close()
    until(lambda: not alive(served))


# ------------------------------------------------------------------------------------------------- LeRobot itself

REAL = os.environ.get("NEXTSTATE_LEROBOT_PYTHON", "")
MAKE = ROOT / "tests" / "make_lerobot_policies.py"


@pytest.mark.skipif(not REAL, reason="NEXTSTATE_LEROBOT_PYTHON names no interpreter that has LeRobot")
@pytest.mark.parametrize("name", ["act", "ensemble", "diffusion"])
def test_real_policies(tmp_path_factory, name):
    """Catches actions that differ from those that LeRobot's own evaluation takes: normalization that is left out,
    a picture or a state in another form, a chunk or a history that is cut elsewhere, weights that are not loaded."""
    folder = tmp_path_factory.getbasetemp() / "lerobot"
    if not folder.exists():
        subprocess.run([REAL, str(MAKE), str(folder)], check=True, capture_output=True, cwd=ROOT.parent)
    data = np.load(folder / f"{name}.npz")
    policy = lerobot_policy(str(folder / name), HANDS, REAL)
    steps, taken, states = len(data["state"]), [], [policy.init("tidy up", 3)]
    for step in range(0, steps, policy.execute):
        images = {camera.name: data[camera.name][step : step + 1] for camera in HANDS.cameras}
        chunks, states = policy.act(Observation(images, data["state"][step : step + 1]), states)
        taken += list(chunks[0])
    np.testing.assert_allclose(taken, data["action"], atol=1e-6)
    assert np.ptp(data["action"], axis=0).min() > 1e-4, "the policy looks at what it is shown"
