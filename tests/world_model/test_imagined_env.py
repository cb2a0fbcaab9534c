"""The model as an environment: gymnasium's contract, and that what it shows is what the model imagines."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from envs.data.store import EpisodeError, EpisodeStore
from envs.types import Observation, Scene
from policies.exploration import RandomPolicy
from policies.rollout import rollout
from tests.viewed import viewed
from world_model import checkpoint
from world_model.imagined_env import EpisodeStarts, ImaginedEnv, Start
from world_model.training.start import continued
from world_model.types import History

INSTRUCTION = "lift the cube"


@pytest.fixture
def folder(told, text, tmp_path):
    """A checkpoint of a model with strides, untrained, and the folder of the episodes to start from."""
    model = continued(told[0], replace(told[0].config, strides=(1, 2, 4, 8))).eval()
    checkpoint.save(tmp_path / "model", model, text, {"instructions": [INSTRUCTION], "discount": 0.99})
    for seed in range(3):
        EpisodeStore(tmp_path / "data").write(viewed(seed, instruction=INSTRUCTION), f"{seed}")
    return tmp_path


def made(folder, **settings) -> ImaginedEnv:
    given = {"checkpoint": folder / "model", "starts": str(folder / "data"), "threshold": 0.999, **settings}
    return gymnasium.make_vec("nextstate/Imagined-v0", num_envs=settings.pop("num_envs", 2), **{
        name: value for name, value in given.items() if name != "num_envs"
    })  # fmt: skip


def commands(envs: ImaginedEnv, steps: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (steps, *envs.action_space.shape)).astype(np.float32)


def run(envs: ImaginedEnv, actions: np.ndarray) -> list[tuple]:
    return [envs.step(action) for action in actions]


def test_it_begins_where_the_episodes_began(folder):
    """Catches starts of another seed, and pictures that are decoded although the real ones are there."""
    envs = made(folder, look=2)
    obs, info = envs.reset(seed=1)
    for robot, seed in enumerate((1, 2)):
        episode = viewed(seed, instruction=INSTRUCTION)
        assert (obs["front"][robot] == episode.images["front"][0]).all()
        assert (obs["state"][robot] == episode.state[0]).all()
        assert (obs["front.pose"][robot] == episode.poses["front"][0]).all()
    assert list(info["instruction"]) == [INSTRUCTION] * 2 and info["_scene"].all()
    assert isinstance(info["scene"][0], Scene) and info["scene"][0].keypoints.shape == (1, 3)
    assert envs.observation_space.contains({**obs, "state": np.clip(obs["state"], -0.5, 0.5)})


def test_it_shows_what_the_model_imagines(folder):
    """Catches a step that forgets the step before, a chunk coded otherwise than it was executed, or a frame of
    another robot."""
    envs = made(folder, look=8)
    envs.reset(seed=0)
    actions = commands(envs, 16)
    outs = run(envs, actions)
    model, words = envs.unwrapped.model, envs.unwrapped.loaded.text
    for robot in range(2):
        episode = viewed(robot, instruction=INSTRUCTION)
        poses = {name: episode.poses[name][0] for name in ("front", "hand")}
        now = Observation({name: each[0] for name, each in episode.images.items()}, episode.state[0], poses)
        cache = model.prefill([History(tuple(words.encode(INSTRUCTION)), ((now, None),))])
        chunks = torch.from_numpy(actions[:, robot].reshape(1, 1, 2, 8, -1))
        future = model.imagine(cache, chunks)[0]  # both at once
        frames = model.decode_frames(future)
        for step, (obs, _, _, _, info) in ((0, outs[7]), (1, outs[15])):
            np.testing.assert_allclose(obs["state"][robot], future.state[0, step], atol=1e-5)
            assert np.abs(obs["front"][robot].astype(int) - frames["front"][0, step].numpy()).max() <= 1
            assert info["value"][robot] == pytest.approx(future.value[0, step].item(), abs=1e-4)
            assert info["success_probability"][robot] == pytest.approx(future.success[0, step].item(), abs=1e-4)
            assert info["uncertainty"][robot] == pytest.approx(future.uncertainty[0, step].item(), rel=1e-3)


def test_the_observation_changes_at_every_look(folder):
    """Catches a robot that is imagined at every control step, though its policy looks at every second."""
    envs = made(folder, look=2)
    first, _ = envs.reset(seed=0)
    states = [first["state"], *(out[0]["state"] for out in run(envs, commands(envs, 6)))]
    changed = [not np.array_equal(a, b) for a, b in zip(states, states[1:], strict=False)]
    assert changed == [False, True] * 3


def test_the_same_seed_and_actions_give_the_same_dream(folder):
    """Catches hidden state, and robots that depend on who is imagined beside them."""
    envs, alone = made(folder, look=1, num_envs=3), made(folder, look=1, num_envs=1)
    envs.reset(seed=0)
    actions = commands(envs, 4)
    once = [out[0]["state"] for out in run(envs, actions)]
    envs.reset(seed=0)
    np.testing.assert_array_equal(once, [out[0]["state"] for out in run(envs, actions)])
    alone.reset(seed=2)
    by_itself = [out[0]["state"][0] for out in run(alone, actions[:, 2:])]
    np.testing.assert_allclose([state[2] for state in once], by_itself, atol=1e-5)


def test_masked_reset_leaves_the_others_alone(folder):
    """Catches a reset of one robot that starts all anew."""
    envs = made(folder, look=1, autoreset_mode=AutoresetMode.DISABLED, max_steps=3)
    envs.reset(seed=0)
    before = run(envs, commands(envs, 2))[-1][0]
    obs, info = envs.reset(seed=[None, 2], options={"reset_mask": np.array([False, True])})
    assert (obs["state"][0] == before["state"][0]).all() and (obs["state"][1] == viewed(2).state[0]).all()
    assert list(info["_instruction"]) == [False, True]
    *_, truncated, _ = envs.step(commands(envs, 1)[0])
    assert list(truncated) == [True, False]
    with pytest.raises(ValueError, match=r"robots \[0\] are done"):
        envs.step(commands(envs, 1)[0])


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_autoreset_as_gymnasium_defines_it(folder, mode):
    """Catches a last observation that is lost, or an episode that begins a step too early or too late."""
    envs = made(folder, look=1, max_steps=2, autoreset_mode=mode)
    envs.reset(seed=0)
    _, second, third = run(envs, commands(envs, 3))
    assert second[3].all()
    starts = [viewed(seed, instruction=INSTRUCTION).state[0] for seed in range(3)]

    def is_start(obs) -> bool:
        return any(np.array_equal(obs["state"][0], start) for start in starts)

    if mode is AutoresetMode.SAME_STEP:
        assert is_start(second[0]) and not is_start({"state": second[4]["final_obs"][0]["state"][None]})
        assert second[4]["final_info"]["instruction"][0] == INSTRUCTION and not is_start(third[0])
    else:
        assert not is_start(second[0]) and is_start(third[0]) and not third[1].any() and not third[3].any()


def test_success_ends_the_episode(folder):
    """Catches a success that is read and not said. Any probability is one here."""
    envs = made(folder, look=1, threshold=1e-9)
    envs.reset(seed=0)
    _, reward, terminated, truncated, info = envs.step(commands(envs, 1)[0])
    assert terminated.all() and (reward == 1).all() and not truncated.any() and info["success"].all()


def test_the_projects_loop_drives_it(folder):
    """Catches an environment that only looks like the real one: episodes come out of it as out of any other."""
    envs = made(folder, look=2, autoreset_mode=AutoresetMode.DISABLED, max_steps=6)
    policy = RandomPolicy(envs.unwrapped.robot_spec, execute=2)
    runs = list(rollout(envs, policy, range(3)))
    assert [len(run.episode) for run in runs] == [6] * 3 and {run.episode.seed for run in runs} == {0, 1, 2}
    assert all(run.episode.truncated and run.episode.source == "imagined" for run in runs)
    with pytest.raises(ValueError, match="new every 2 control steps, and a policy looks every 1"):
        next(rollout(envs, RandomPolicy(envs.unwrapped.robot_spec), [0]))
    assert len(envs.render()) == 2 and envs.render()[0].shape == (32, 32, 3)


def test_an_expert_is_told_what_its_task_makes_of_what_is_believed(folder):
    """Catches a scene of another moment than the picture, and one that says nothing of what is to be done next."""

    def scene_in(keypoints, state, holding, success):
        return Scene(keypoints, -1, 7, float(state[0]), state[:3])

    envs = made(folder, look=1, scene_in=scene_in)
    obs, info = envs.reset(seed=0)
    for _ in range(2):
        assert [scene.stage for scene in info["scene"]] == [7, 7]
        assert [scene.opening for scene in info["scene"]] == obs["state"][:, 0].tolist()
        obs, _, _, _, info = envs.step(commands(envs, 1)[0])


def test_one_start_is_enough(folder):
    """A single picture and state, as from a robot."""
    loaded, start = checkpoint.load(folder / "model"), EpisodeStarts((str(folder / "data"),))(1)
    envs = ImaginedEnv(num_envs=2, checkpoint=loaded, starts=start)
    obs, _ = envs.reset(seed=7)
    assert (obs["state"] == start.observation.state).all()


def test_what_is_wrong_is_named(folder):
    """Catches an error deep in the model, or none at all."""
    start = EpisodeStarts((str(folder / "data"),))(0)
    far = replace(start, observation=replace(start.observation, state=np.full(3, 9, np.float32)))
    other = Start(Observation({"side": np.zeros((8, 8, 3), np.uint8)}, np.zeros(3, np.float32)), "x")
    for settings, error, message in (
        ({"starts": ()}, ValueError, "needs `starts`"), ({"starts": far}, ValueError, r"range .* hand\.x"),
        ({"starts": other}, ValueError, "not of the robot"), ({"look": 3}, ValueError, "3"),
        ({"starts": str(folder / "nothing")}, EpisodeError, "nothing"), ({"threshold": 1.5}, ValueError, "threshold"),
        ({"checkpoint": folder / "nothing"}, checkpoint.CheckpointError, "nothing"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            made(folder, **settings)
    envs = made(folder)
    with pytest.raises(ValueError, match="reset before"):
        envs.step(commands(envs, 1)[0])
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="not finite"):
        envs.step(np.full(envs.action_space.shape, np.nan, np.float32))


def test_a_saved_dream_goes_on_as_it_did(folder):
    """Catches a dream that is put back in part, beside commands that were still pending, or that stays over."""
    envs = made(folder, look=4, autoreset_mode=AutoresetMode.DISABLED, max_steps=7).unwrapped
    with pytest.raises(ValueError, match="must be reset before its state can be saved"):
        envs.save_state()
    envs.reset(seed=0)
    actions = commands(envs, 7)
    run(envs, actions[:2])  # between two looks
    saved = [envs.save_state(robot) for robot in range(2)]
    first = run(envs, actions[2:])[-1]
    assert first[3].all()
    for robot in range(2):
        envs.load_state(saved[robot], robot)
    again = run(envs, actions[2:])[-1]
    for name in first[0]:
        np.testing.assert_array_equal(first[0][name], again[0][name])
    np.testing.assert_array_equal(first[4]["value"], again[4]["value"])
