"""Environments that nobody here wrote, behind the contract."""

import gymnasium as gym
import numpy as np
import pytest

from envs.adapter import Adapter, AdapterConfig, in_words, resized, seed_of
from envs.types import ActionSpec, CameraSpec, Observation
from tests.plugin.my_robot import Mark


def adapted(**settings) -> Adapter:
    return Adapter(gym.make("Mark-v0", render_mode="rgb_array"), "seen", AdapterConfig(**settings))


def test_what_a_foreign_environment_leaves_open_has_a_default():
    """Catches a camera, a rate, a limit or a range that somebody's robot does not have."""
    env = adapted()
    spec = env.robot_spec
    assert spec.cameras == (CameraSpec("render", 64, 64),) and spec.control_hz == 10 and not spec.keypoints
    assert [part.name for part in spec.state] == ["point.0", "point.1", "mark.0", "mark.1"]
    assert spec.action == (ActionSpec("action.0", *np.float32([-0.2, 0.2]).tolist()),
                           ActionSpec("action.1", *np.float32([-0.2, 0.2]).tolist()))  # fmt: skip
    assert (env.instruction, env.max_steps, env.split) == ("mark", 40, "seen")
    obs, info = env.reset(seed=0)
    assert env.observation_space.contains(obs) and info["instruction"] == "mark" and info["success"] is False
    assert obs["render"].shape == (64, 64, 3) and np.ptp(obs["render"]) > 100, "the picture shows nothing"


def test_settings_take_the_place_of_defaults():
    """Catches a setting that is accepted and not used."""
    env = adapted(instruction="go to the red mark", image_size=96, state=("point",), grippers=(1,), max_steps=7,
                  control_hz=5.0, criterion="near")  # fmt: skip
    spec = env.robot_spec
    assert spec.cameras == (CameraSpec("render", 96, 96),) and len(spec.state) == 2 and spec.grippers == (1,)
    assert (env.instruction, env.max_steps, env.criterion, spec.control_hz) == ("go to the red mark", 7, "near", 5.0)
    np.testing.assert_array_equal(env.reset(seed=0)[0]["state"], env.unwrapped.point)


def test_parts_of_an_observation():
    """Catches a goal's height, which never changes, that cannot be left out of the state."""
    env = adapted(state=("mark[1:2]", "point"))
    assert [part.name for part in env.robot_spec.state] == ["mark.1", "point.0", "point.1"]
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs["state"], [env.unwrapped.mark[1], *env.unwrapped.point])
    with pytest.raises(ValueError, match="`mark\\[1:9\\]`, but the observation has point, mark"):
        adapted(state=("mark[1:9]",))


def test_differences_of_an_observation():
    """Catches a goal relative to a thing that a user can only have by editing the environment, and one taken the wrong
    way round."""
    env = adapted(state=("mark-point", "mark[0:1]-point[1:2]"))
    assert [part.name for part in env.robot_spec.state] == ["mark-point.0", "mark-point.1", "mark[0:1]-point[1:2].0"]
    obs, _ = env.reset(seed=0)
    point, mark = env.unwrapped.point, env.unwrapped.mark
    np.testing.assert_allclose(obs["state"], [*(mark - point), mark[0] - point[1]], atol=1e-6)
    with pytest.raises(ValueError, match="`mark-point\\[0:1\\]`, a difference of 2 and 1 numbers"):
        adapted(state=("mark-point[0:1]",))
    with pytest.raises(ValueError, match="`place`, but the observation has point, mark"):
        adapted(state=("mark-place",))


def test_positions_are_named():
    """Catches a hand whose error nobody can tell in centimetres, and a position that is no part of the state."""

    class Deep(Mark):
        observation_space = gym.spaces.Dict(hand=gym.spaces.Box(-1, 1, (5,)))

        def _seen(self):
            return {"hand": np.arange(5, dtype=np.float32)}

    spec = Adapter(Deep(render_mode="rgb_array"), "seen", AdapterConfig(positions=("hand[1:4]",))).robot_spec
    assert spec.positions == ((1, 2, 3),) and [part.unit for part in spec.state] == ["", "m", "m", "m", ""]
    for wrong, says in ((("hand[0:2]",), "three numbers"), (("arm[0:3]",), "the observation has hand")):
        with pytest.raises(ValueError, match=says):
            Adapter(Deep(render_mode="rgb_array"), "seen", AdapterConfig(positions=wrong))
    with pytest.raises(ValueError, match="not in the state: hand\\[2:5\\].z"):
        settings = AdapterConfig(state=("hand[0:4]",), positions=("hand[2:5]",))
        Adapter(Deep(render_mode="rgb_array"), "seen", settings)


@pytest.mark.parametrize("stop", [True, False])
def test_success_is_read_from_info(stop):
    """Catches a success that is never seen, and an episode that goes on, or ends, against the setting."""
    env = adapted(stop=stop)
    env.reset(seed=0)
    env.unwrapped.mark = env.unwrapped.point.copy()
    _, _, terminated, truncated, info = env.step(np.zeros(2))
    assert info["success"] is True and info["progress"] == 1.0 and terminated is stop and not truncated


class Quiet(Mark):
    """Says nothing of success, but ends when it is there."""

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, info["is_success"], truncated, {}


def test_without_a_word_of_success_termination_is_it():
    """Catches an environment whose only word of success is that it ends, and that nobody believes."""
    env = Adapter(Quiet(render_mode="rgb_array"), "seen")
    env.reset(seed=0)
    assert env.step(np.zeros(2))[4]["success"] is False
    env.unwrapped.mark = env.unwrapped.point.copy()
    assert env.step(np.zeros(2))[4]["success"] is True


def test_splits_of_an_environment_without_splits_share_no_episode():
    """Catches evaluation on the very episodes that were trained on."""
    starts = {}
    for split in ("train", "seen"):
        env = Adapter(gym.make("Mark-v0", render_mode="rgb_array"), split)
        starts[split] = [tuple(env.reset(seed=seed)[0]["state"]) for seed in range(20)]
        assert starts[split] == [tuple(env.reset(seed=seed)[0]["state"]) for seed in range(20)]
    assert not set(starts["train"]) & set(starts["seen"])
    assert len({seed_of(split, seed) for split in ("train", "seen") for seed in range(1000)}) == 2000


def test_pictures_within_observations():
    """Catches pictures taken for numbers, and numbers nested a level deeper that get lost."""

    class Two(Mark):
        observation_space = gym.spaces.Dict(
            eyes=gym.spaces.Dict(
                left=gym.spaces.Box(0, 255, (48, 64, 3), np.uint8), right=gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
            ),
            arm=gym.spaces.Dict(joints=gym.spaces.Box(-np.inf, np.inf, (3,)), mode=gym.spaces.Discrete(4)),
        )

        def _seen(self):
            eyes = {"left": np.full((48, 64, 3), 7, np.uint8), "right": np.full((16, 16, 3), 9, np.uint8)}
            return {"eyes": eyes, "arm": {"joints": np.arange(3.0), "mode": 2}}

    env = Adapter(Two(), "train")
    obs, _ = env.reset(seed=0)
    assert env.robot_spec.cameras == (CameraSpec("eyes.left", 48, 64), CameraSpec("eyes.right", 16, 16))
    assert [(part.name, np.isinf(part.low)) for part in env.robot_spec.state] == [
        ("arm.joints.0", True), ("arm.joints.1", True), ("arm.joints.2", True), ("arm.mode", False)
    ]  # fmt: skip
    np.testing.assert_array_equal(obs["state"], np.float32([0, 1, 2, 2]))
    assert obs["eyes.left"].shape == (48, 64, 3) and (obs["eyes.right"] == 9).all()


@pytest.mark.parametrize(
    ("settings", "env", "says"),
    [
        ({"state": ("hand",)}, {}, "the observation has point, mark"),
        ({"grippers": (2,)}, {}, "there are 2 action dimensions"),
        ({}, {"render_mode": None}, "render_mode=rgb_array"),
        ({}, {"action_space": gym.spaces.Discrete(3)}, "must be a Box"),
        ({}, {"action_space": gym.spaces.Box(-np.inf, np.inf, (2,))}, "env.action_low"),
    ],
)
def test_what_cannot_be_adapted_says_what_to_set(settings, env, says):
    """Catches an IndexError in the middle of an episode where one line could say what is missing."""
    mark = Mark(render_mode="rgb_array")
    for name, value in env.items():
        setattr(mark, name, value)
    with pytest.raises(ValueError, match=says):
        Adapter(mark, "seen", AdapterConfig(**settings))


def test_resizing_keeps_proportions():
    """Catches a round thing that becomes an ellipse, and a picture that is shifted."""
    wide = np.zeros((100, 200, 3), np.uint8)
    wide[:, 100:] = 255
    small = resized(wide, 50, 50)
    assert small.shape == (50, 50, 3) and (small[:, :24] == 0).all() and (small[:, 26:] == 255).all()


def test_names_in_words():
    """Catches an instruction that no tokenizer has seen the like of."""
    assert [in_words(name) for name in ("FetchPush", "my_task", "Door")] == ["fetch push", "my task", "door"]


class Filmed(Mark):
    """Its observation tells where the camera is, among other numbers."""

    observation_space = gym.spaces.Dict(Mark.observation_space, rig=gym.spaces.Box(-np.inf, np.inf, (10,)))
    pose = np.float32([0.5, 0, 1.4, 1, 0, 0, 0, 0.7])

    def _seen(self):
        return super()._seen() | {"rig": np.array([7, 8, *self.pose])}


def test_a_foreign_camera_tells_its_pose():
    """Catches a pose that only our own robots can tell, and one that is read as the robot's state."""

    def filmed(**settings) -> Adapter:
        return Adapter(Filmed(render_mode="rgb_array"), "seen", AdapterConfig(**settings))

    env = filmed(poses={"render": "rig[2:10]"})
    obs, _ = env.reset(seed=0)
    assert env.robot_spec.cameras[0].posed and len(env.robot_spec.state) == 4
    assert env.observation_space.contains(obs) and obs["render.pose"].dtype == np.float32
    seen = Observation.of(obs, env.robot_spec).check(env.robot_spec)
    np.testing.assert_array_equal(seen.poses["render"], Filmed.pose)
    untold = filmed()
    assert "render.pose" not in untold.reset(seed=0)[0] and not untold.robot_spec.cameras[0].posed
    assert len(filmed(poses={"render": "rig[2:10]"}, state=("rig",)).robot_spec.state) == 10
    for poses, message in (
        ({"side": "rig[2:10]"}, "env.poses names side, but the cameras are render"),
        ({"render": "rigg"}, "env.poses holds `rigg`, but the observation has"),
        ({"render": "rig"}, "env.poses.render is 10 numbers: a pose is 8"),
    ):
        with pytest.raises(ValueError, match=message):
            filmed(poses=poses)
