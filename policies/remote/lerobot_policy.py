"""A pretrained policy of LeRobot's as one of ours: asked in a process of its own, for its pins and ours do not fit."""

from __future__ import annotations

import importlib.util
import json
import select
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from envs.types import Spec
from policies.remote.client import ServerPolicy
from policies.remote.messages import Keys

SCRIPT = Path(__file__).with_name("lerobot_process.py")
STATE, IMAGE, IMAGES, TASK = "observation.state", "observation.image", "observation.images", "task"
START_S = 600.0  # to import LeRobot and read the weights
END_S = 5.0  # after which a process that was told to end is killed
INSTALL = "pip install lerobot websockets msgpack"


class LeRobotError(OSError):
    """The process of a LeRobot policy does not start. The message says why."""


def lerobot_policy(
    folder: str, spec: Spec, python: str | None = None, execute: int | None = None, device: str = "auto",
    timeout_s: float = 60.0, keys: Mapping[str, str] | None = None,
) -> ServerPolicy:  # fmt: skip
    """The policy that `save_pretrained` wrote to a folder, for a robot. Its process ends with it, and with ours.

    python: the interpreter of the environment where LeRobot is installed; None for ours. execute: control steps before
    it looks again, None for as many as it was trained with. device: auto for LeRobot's choice. timeout_s: of a
    decision. keys: the policy's names of cameras, `state` and `prompt` where they are not those of our data sets in its
    format, `observation.images.NAME`, `observation.state` and `task`.

    ValueError where the policy is of another robot, LeRobotError where it cannot be loaded.
    """
    with ExitStack() as stack:
        process = Process([python or own_python(), str(SCRIPT), str(folder), device, str(execute or 0)])
        stack.callback(process.end)
        said = process.first_words()
        policy = ServerPolicy(
            f"ws://127.0.0.1:{said['port']}", spec, None, timeout_s, keys_for(spec, said, keys or {}, str(folder))
        )
        weakref.finalize(policy, stack.pop_all().close)
    return policy


def own_python() -> str:
    """Our interpreter, where it has LeRobot."""
    if importlib.util.find_spec("lerobot") is None:
        raise ValueError(
            "policy=lerobot needs a Python that has LeRobot, and this one has not. Its pins do not fit ours: give it "
            f"an environment of its own, `python -m venv lerobot-venv && lerobot-venv/bin/{INSTALL}`, and set "
            "policy.python=lerobot-venv/bin/python"
        )
    return sys.executable


class Process:
    """LeRobot's process. It ends when its standard input does, which only we hold."""

    def __init__(self, command: list[str]) -> None:
        self.errors = tempfile.TemporaryFile()  # LeRobot tells a lot, of which only the end of a failure matters
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
            )
        except OSError as error:
            self.errors.close()
            raise LeRobotError(f"policy.python={command[0]} cannot be started ({error.strerror})") from error

    def first_words(self) -> dict[str, Any]:
        """What it says of its policy and where it listens. LeRobotError where it cannot, or dies."""
        if not select.select([self.process.stdout], [], [], START_S)[0]:
            raise LeRobotError(f"LeRobot's process did not load the policy within {START_S:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise LeRobotError(f"LeRobot's process ended before it had loaded the policy ({self._last_words()})")
        said = json.loads(line)
        if "error" in said:
            raise LeRobotError(f"policy=lerobot: {said['error']}")
        return said

    def _last_words(self) -> str:
        status = self.process.wait(END_S)
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else f"status {status}"

    def end(self) -> None:
        """Wait until it has ended."""
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def keys_for(spec: Spec, said: Mapping[str, Any], renamed: Mapping[str, str], folder: str) -> dict[str, str]:
    """Cameras, `state` and `prompt` by the policy's names. ValueError, naming all of it, where the robot does not have
    what the policy takes, in another size, or takes other commands."""
    inputs = {key: tuple(shape) for key, shape in said["inputs"].items()}
    cameras = {camera.name: f"{IMAGES}.{camera.name}" for camera in spec.cameras}
    if len(cameras) == 1 and IMAGE in inputs:
        cameras = dict.fromkeys(cameras, IMAGE)
    keys = Keys(spec, {**cameras, "state": STATE, "prompt": TASK, **renamed})
    here = {keys.images[camera.name]: (3, camera.height, camera.width) for camera in spec.cameras}
    here |= {keys.state: (len(spec.state),)} if spec.state else {}
    wrong = []
    for key, shape in inputs.items():
        if key not in here:
            wrong.append(f"it takes `{key}` {shape}, which the robot does not have")
        elif here[key] != shape and not (said["resizes"] and len(shape) == len(here[key]) == 3):
            wrong.append(f"it takes `{key}` {shape}, and the robot's is {here[key]}")
    if said["actions"] != len(spec.action):
        wrong.append(f"it commands {said['actions']} dimensions, and the robot takes {len(spec.action)}")
    if wrong:
        listed = ", ".join(f"`{key}` {shape}" for key, shape in here.items()) or "nothing"
        raise ValueError(
            f"the {said['policy']} policy in {folder} is of another robot: {'; '.join(wrong)}. The robot has {listed}; "
            "policy.keys gives them the policy's names, such as '+policy.keys={CAMERA:observation.images.NAME}'"
        )
    return keys.to_dict()
