"""LeRobot's interface on ours."""

from contextlib import closing

import numpy as np
import pytest
import torch

from envs.types import Observation
from policies.adapters.lerobot import LeRobotPolicy
from policies.base import OneByOne
from policies.rollout import rollout
from tests.reach import SPEC as REACH
from tests.reach import Ahead, reach_envs
from tests.robots import ARM, HANDS, UNEVEN, made_up


class Telling:
    """Tells in its actions what it knows: (decisions so far, seed, length of the instruction) / 100, and whose picture
    it sees. Four control steps a chunk, of which two are executed."""

    execute, batched = 2, True

    def __init__(self, spec=HANDS):
        self.spec, self.seen = spec, []

    def init(self, instruction, seed=0):
        return (instruction, seed, 0)

    def act(self, observations, states):
        self.seen.append(observations.check(self.spec))
        chunks = np.zeros((len(states), 4, len(self.spec.action)), np.float32)
        for chunk, (instruction, seed, asked) in zip(chunks, states, strict=True):
            chunk[:, :3] = asked / 100, seed / 100, len(instruction) / 100
            chunk[:, 0] += 0.001 * np.arange(4)
        return chunks, [(instruction, seed, asked + 1) for instruction, seed, asked in states]


def batch_of(observation: Observation, task) -> dict:
    """As LeRobot's preprocess_observation makes it of B robots' pictures and states."""
    images = {
        f"observation.images.{name}": torch.from_numpy(image).permute(0, 3, 1, 2).contiguous().float() / 255
        for name, image in observation.images.items()
    }
    return {**images, "observation.state": torch.from_numpy(observation.state), "task": task}


def rows(spec=HANDS, count: int = 3) -> Observation:
    return made_up(spec).obs(slice(0, count))


def told(actions: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in (100 * actions[:, :3]).round().int().tolist()]


def test_pictures_and_states_arrive_to_the_bit():
    """Catches channels or rows that are swapped, and brightness that is rounded down."""
    policy, sent = Telling(), rows()
    rng = np.random.default_rng(0)
    sent = Observation({n: rng.integers(256, size=i.shape, dtype=np.uint8) for n, i in sent.images.items()}, sent.state)
    chunks = LeRobotPolicy(policy, HANDS).predict_action_chunk(batch_of(sent, "go"))
    assert chunks.shape == (3, 4, 4) and chunks.dtype == torch.float32
    for name, image in sent.images.items():
        np.testing.assert_array_equal(policy.seen[0].images[name], image)
    np.testing.assert_array_equal(policy.seen[0].state, sent.state)


def test_actions_one_at_a_time():
    """Catches a policy that is asked at every step, or that goes on with a chunk longer than it means to."""
    policy = Telling()
    robot, batch = LeRobotPolicy(policy, HANDS, seed=5), batch_of(rows(), ["go", "stop", "wait a bit"])
    actions = [robot.select_action(batch) for _ in range(5)]
    assert len(policy.seen) == 3 and actions[0].shape == (3, 4)
    assert told(actions[0]) == [(0, 5, 2), (0, 6, 4), (0, 7, 10)] and told(actions[2])[0] == (1, 5, 2)
    assert (actions[1] - actions[0])[0, 0].item() == pytest.approx(0.001, abs=1e-6), "the chunk's second action"
    robot.reset()
    assert told(robot.select_action(batch)) == [(0, 8, 2), (0, 9, 4), (0, 10, 10)], "new episodes, new seeds"


def test_another_task_is_another_episode():
    """Catches a robot that is told something else and finishes what it was told before."""
    robot = LeRobotPolicy(Telling(), HANDS)
    robot.select_action(batch_of(rows(), "go"))
    actions = robot.select_action(batch_of(rows(), ["go", "stop", "go"]))
    assert told(actions) == [(1, 0, 2), (0, 3, 4), (1, 2, 2)]
    with pytest.raises(ValueError, match="2 rows after one of 3: call `reset`"):
        robot.predict_action_chunk(batch_of(rows(count=2), "go"))


def test_robots_with_one_camera_or_no_state():
    """Catches keys that only a robot with several cameras has."""
    arm = batch_of(rows(ARM), "go")
    arm["observation.image"] = arm.pop("observation.images.side")
    assert LeRobotPolicy(Telling(ARM), ARM).select_action(arm).shape == (3, 4)
    bare = batch_of(rows(UNEVEN), "go")
    del bare["observation.state"]
    chunks = LeRobotPolicy(Telling(UNEVEN), UNEVEN).predict_action_chunk(bare)
    assert (chunks.numpy() >= UNEVEN.action_low).all(), "commands leave within the robot's range"


def changed(**changes):
    batch = batch_of(rows(), "go")
    return {key: value for key, value in (batch | changes).items() if value is not None}


LEFT = "observation.images.left"


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({}, "no tensor `observation.images.left`; it has nothing"),
        (changed(**{"observation.images.right": None}), "no tensor `observation.images.right`"),
        (changed(**{LEFT: torch.zeros(3, 16, 16, 3)}), r"float \(B, 3, h, w\)"),
        (changed(**{LEFT: torch.zeros(3, 3, 16, 16, dtype=torch.uint8)}), "torch.uint8"),
        (changed(**{LEFT: torch.full((3, 3, 16, 16), 200.0)}), "between 0 and 1"),
        (changed(**{LEFT: torch.full((3, 3, 16, 16), -1.0)}), "is it normalized already"),
        (changed(**{LEFT: torch.full((3, 3, 16, 16), torch.nan)}), "between 0 and 1"),
        (changed(**{LEFT: torch.zeros(3, 3, 32, 16)}), "image `left` must be uint8"),
        (changed(**{"observation.state": None}), r"`observation.state` must be a tensor \(3, 6\), got NoneType"),
        (changed(**{"observation.state": torch.zeros(2, 6)}), r"got \(2, 6\)"),
        (changed(**{"observation.state": torch.full((3, 6), torch.inf)}), "not finite"),
        (changed(task=None), "`task` must be text"),
        (changed(task=["go", "stop"]), "2 texts for 3 rows"),
        (changed(task=[1, 2, 3]), "`task` must be text"),
    ],
)  # fmt: skip
def test_a_wrong_batch(batch, says):
    """Catches a traceback of torch's where a key, a range or a shape is not as in LeRobot."""
    with pytest.raises(ValueError, match=says):
        LeRobotPolicy(Telling(), HANDS).predict_action_chunk(batch)


def test_it_acts_as_the_policy_itself_does():
    """Catches an interface that changes what is done."""
    with closing(reach_envs(1)) as envs:
        (run,) = rollout(envs, Ahead(), [0])
        robot = LeRobotPolicy(OneByOne(Ahead()), REACH)
        raw, info = envs.reset(seed=[0])
        for action in run.episode.action:
            observation = Observation({camera.name: raw[camera.name] for camera in REACH.cameras}, raw["state"])
            chosen = robot.select_action(batch_of(observation, str(info["instruction"][0]))).numpy()
            np.testing.assert_array_equal(chosen[0], action)
            raw, _, _, _, _ = envs.step(chosen)


def test_the_simulators_truth():
    """Catches an expert that would be asked without what it reads."""

    class Sees(Telling):
        privileged = True

    with pytest.raises(ValueError, match="simulator's truth"):
        LeRobotPolicy(Sees(), HANDS)
