import gymnasium as gym
import numpy as np
import pytest

import envs  # noqa: F401  (registers the ids)
from envs.sim.rendering import Renderer
from envs.sim.tabletop import RENDER_SIZE
from envs.tasks.fold_half import FoldHalf
from envs.tasks.lift import Lift
from envs.types import Scene, SimulationError

REST = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)


@pytest.fixture(scope="module")
def lift():
    """One training environment for the whole file: building it is the slow part."""
    env = gym.make("nextstate/Lift-v0").unwrapped
    yield env
    env.close()


@pytest.mark.parametrize(
    ("field", "value", "cause"), [("qpos", np.nan, "QPOS"), ("qvel", 1e11, "QVEL"), ("xfrc_applied", 1e30, "QACC")]
)
def test_an_unstable_simulation_is_an_error(lift, field, value, cause, tmp_path, monkeypatch):
    """MuJoCo resets itself in the middle of a step: the hand jumps by most of a metre, time starts again, and the
    episode is written as if nothing had been. An earlier state must still be good, with the same future."""
    monkeypatch.chdir(tmp_path)
    lift.reset(seed=0)
    lift.step(REST)
    saved = lift.save_state()
    lift.step(REST)
    future = lift.save_state().physics
    getattr(lift._data, field)[:] = value
    for advance in (lift.step, lift.advance):
        with pytest.raises(SimulationError, match=f"control step 3: .*{cause}"):
            advance(REST)
    assert not list(tmp_path.iterdir()), "MUJOCO_LOG.TXT"
    lift.load_state(saved)
    lift.step(REST)
    np.testing.assert_array_equal(lift.save_state().physics, future)
    assert lift.steps() == 2


def test_dropped_contacts_are_in_info(lift):
    """Contacts that MuJoCo had no room for, with nothing in the data that says so; a restored state has its count."""
    _, info = lift.reset(seed=0)
    assert info["warnings"] == {}
    saved = lift.save_state()
    lift._data.warning.number[1] = 3  # mjWARN_CONTACTFULL
    assert lift.step(REST)[-1]["warnings"] == {"contacts_dropped": 3}
    lift.load_state(saved)
    assert lift.step(REST)[-1]["warnings"] == {}


@pytest.mark.parametrize(
    "bad",
    [np.full(7, np.nan), np.array([0, 0, np.inf, 0, 0, 0, 0]), np.zeros(6), np.zeros(()), np.zeros(0)]
    + [np.zeros((n, 7)) for n in (1, 2, 8)],
    ids=lambda bad: str(bad.shape),
)
def test_a_bad_action_is_refused(lift, bad):
    """NaN that reaches the simulator poisons the state silently, a chunk taken for an action ends in an assertion of
    somebody else's; the state must be as it was."""
    lift.reset(seed=0)
    before = lift.save_state().physics
    with pytest.raises(ValueError, match="action"):
        lift.step(bad)
    np.testing.assert_array_equal(lift.save_state().physics, before)


def test_a_state_of_another_episode_is_refused(lift):
    """Cubes of another size, cameras of another place: what is restored would be no state that ever was. The same
    episode in another environment is the same, which lets several processes try futures of one state."""
    lift.reset(seed=1)
    saved = lift.save_state()
    lift.step(REST)
    future = lift.save_state().physics
    lift.reset(seed=2)
    here = lift.save_state().physics
    with pytest.raises(ValueError, match="another"):
        lift.load_state(saved)
    np.testing.assert_array_equal(lift.save_state().physics, here)
    lift.reset(seed=1, options={"split": "seen"})
    with pytest.raises(ValueError, match="Lift seen"):
        lift.load_state(saved)
    other = Lift()
    try:
        other.reset(seed=1)
        other.load_state(saved)
        other.step(REST)
        np.testing.assert_array_equal(other.save_state().physics, future)
    finally:
        other.close()


def test_a_state_names_its_variant():
    """A cloth that is held by friction takes no state of one that is tied."""
    tied, rubbed = FoldHalf(), FoldHalf(grasp="friction")
    try:
        tied.reset(seed=0)
        rubbed.reset(seed=0)
        with pytest.raises(ValueError, match="FoldHalf friction"):
            tied.load_state(rubbed.save_state())
        assert_plain(tied.step(REST)[-1])
    finally:
        tied.close()
        rubbed.close()


@pytest.mark.parametrize("make", [Lift, lambda: FoldHalf(looks="wide")], ids=["Lift plain", "FoldHalf wide"])
def test_looks_of_one_episode(make):
    """A look that reaches into the physics: a state shown again under another look would be one that never was, and
    its labels wrong. Looks that are all the same would teach nothing."""
    env, actions = make(), np.random.default_rng(0).uniform(-1, 1, (6, 7)).astype(np.float32)
    own, motions, pictures = None, [], []
    try:
        for look in (None, 0, 1, 2, 1):
            obs, _ = env.reset(seed=3, options={} if look is None else {"look": look})
            own = own or env.save_state()
            motion = [env.save_state().physics]
            for action in actions:
                env.advance(action)
                motion.append(env.save_state().physics)
            pictures.append((obs["main"], env.observe()["main"]))
            env.load_state(own)
            assert np.array_equal(env.observe()["main"], obs["main"])
            motions.append(np.stack(motion))
    finally:
        env.close()
    assert all(np.array_equal(motion, motions[0]) for motion in motions)
    none, zero, one, two, again = map(np.array, pictures)
    assert np.array_equal(none, zero) and np.array_equal(one, again)
    assert not np.array_equal(zero, one) and not np.array_equal(one, two)


@pytest.mark.parametrize("options", [{"look": -1}, {"look": 0.5}, {"look": "1"}, {"look": True}, {"looks": 1}])
def test_a_wrong_option_of_reset_is_named(lift, options):
    """A typo that silently shows the episode's own look again."""
    with pytest.raises(ValueError, match="look"):
        lift.reset(seed=0, options=options)


def test_a_state_that_is_kept_with_an_episode(lift):
    """A flat state from which another future follows; one without velocities that is stepped from as if it stood
    still, or that shows something else."""
    lift.reset(seed=6)
    action = np.array([0.5, -0.3, -1, 0, 0, 0.2, 1], np.float32)
    for _ in range(4):
        lift.step(action)
    whole, drawn, seen = lift.sim_state(), lift.sim_state(whole=False), lift.observe()
    lift.step(action)
    future = lift.sim_state()
    assert whole.dtype == np.float64 and 0 < np.isnan(drawn).mean() < 0.5
    lift.reset(seed=6, options={"look": 2})
    lift.load_sim_state(whole)
    lift.step(action)
    np.testing.assert_array_equal(lift.sim_state(), future)
    lift.reset(seed=6)
    lift.load_sim_state(drawn)
    assert all(np.array_equal(seen[name], value) for name, value in lift.observe().items())
    with pytest.raises(ValueError, match="not whole"):
        lift.step(action)
    lift.load_sim_state(whole)
    lift.step(action)
    with pytest.raises(ValueError, match="another version of the model"):
        lift.load_sim_state(whole[1:])


@pytest.mark.parametrize("timestep", [0.004, 0.03, 0.2])
def test_a_time_step_divides_the_control_period(timestep):
    """A robot that is commanded at 20.8 Hz, or 16.7, and says that it is at 20."""

    class Slow(Lift):
        pass

    Slow.timestep = timestep
    with pytest.raises(ValueError, match=f"time step of {timestep} s does not divide the 0.05 s"):
        Slow()
    for task in (Lift, FoldHalf):
        assert abs(task()._substeps * task.timestep - 0.05) < 1e-15


def test_the_arm_starts_elsewhere(monkeypatch):
    """A start that is no other one, or one from which the hand is in the table; or one in a split that keeps it."""
    monkeypatch.setattr(Renderer, "load", lambda *_: None)
    monkeypatch.setattr(FoldHalf, "observe", lambda _: {})
    env, starts = FoldHalf(looks="plain"), []  # without noise on its start, unlike Lift
    env.reset(seed=0)
    usual = env._state()
    for split in ("seen", "unseen.camera_far", "wild", "unseen", "unseen.start"):
        for seed in range(2):
            env.reset(seed=seed, options={"split": split})
            metres, turn = (float(np.linalg.norm((env._state() - usual)[part])) for part in (slice(3), slice(3, 6)))
            if split in ("unseen", "unseen.start"):
                starts.append(env.save_state().physics)
                assert 0.05 < metres < 0.09 and 0.06 < turn < 0.3 and env.gripper_position()[2] > 0.9
                env.advance(REST)  # the controller knows where it is
                assert np.linalg.norm(env._state()[:3] - usual[:3]) == pytest.approx(metres, abs=0.005)
            else:
                assert metres < 1e-6 and turn < 1e-6
    env.looks = "wide"
    for seed in range(2):
        env.reset(seed=seed)
        metres, turn = (float(np.linalg.norm((env._state() - usual)[part])) for part in (slice(3), slice(3, 6)))
        starts.append(env.save_state().physics)
        assert 1e-3 < metres < 0.05 and 1e-3 < turn < 0.1, "training starts where `unseen` does, or never elsewhere"
    assert len({start.tobytes() for start in starts}) == len(starts)


def uses(env: Lift, saved) -> list:
    return [
        env.observe, env.render, lambda: env.render_main(64), env.save_state, lambda: env.load_state(saved), env.scene,
        env.success, env.progress, env.score, env.steps, lambda: env.step(REST), lambda: env.advance(REST),
    ]  # fmt: skip


def test_an_arm_that_reached_too_far_comes_back(lift):
    """Catches an elbow that is stretched past its straightest: from there each command to come back presses it further
    open, and whatever a policy does, the arm hangs over the table to the end."""
    lift.reset(seed=3)
    start, height = lift.gripper_position(), 0.95

    def towards(place: np.ndarray) -> np.ndarray:
        step = np.clip((np.array([*place, height]) - lift.gripper_position()) / 0.05, -0.8, 0.8)
        return np.array([*step, 0, 0, 0, 1], np.float32)

    for _ in range(70):
        lift.advance(towards(np.array([0.6, 0.0])))
    reached = lift.gripper_position()[:2]
    assert np.linalg.norm(reached - [-0.56, 0.0]) > 0.8, "a cloth's far corner lies out here"
    for _ in range(60):
        lift.advance(towards(start[:2]))
    assert np.linalg.norm(lift.gripper_position()[:2] - start[:2]) < 0.01


def test_without_an_episode(monkeypatch):
    """AttributeErrors about None, where a user only forgot to reset, or closed too early."""
    env = Lift()
    for use in uses(env, None):
        with pytest.raises(gym.error.ResetNeeded, match="reset"):
            use()
    env.reset(seed=0)
    saved = env.save_state()
    env.close()
    env.close()
    for use in uses(env, saved):
        with pytest.raises(gym.error.ClosedEnvironmentError, match="closed"):
            use()
    env.reset(seed=0)
    env.load_state(saved)

    def broken(rng):
        raise OSError("no space left")

    monkeypatch.setattr(env, "_connect", broken)
    with pytest.raises(OSError, match="no space"):
        env.reset(seed=0)
    for use in uses(env, saved):
        with pytest.raises(gym.error.ResetNeeded, match="reset"):
            use()
    env.close()


def test_render_modes(lift):
    """Colours under the name of depth; a mode that does nothing and says nothing."""
    lift.reset(seed=0)
    assert lift.render().shape == (RENDER_SIZE, RENDER_SIZE, 3)
    for mode in ("depth_array", "rgb", ""):
        with pytest.raises(ValueError, match="render_mode must be one of rgb_array, or None"):
            Lift(render_mode=mode)
    with pytest.warns(UserWarning, match="render mode"):
        assert Lift(render_mode=None).render() is None


def test_reset_options(lift):
    """An option that is ignored: a user evaluates on the training episodes and believes otherwise."""
    _, info = lift.reset(seed=4)
    ours = info["scene"]
    assert info["split"] == "train"
    _, info = lift.reset(seed=4, options={"split": "unseen"})
    assert info["split"] == "unseen" and lift.step(REST)[-1]["split"] == "unseen" and info["scene"] != ours
    _, info = lift.reset(seed=4, options={})
    assert info["split"] == "train" and info["scene"] == ours, "an option is for one episode"
    held_out = Lift(split="unseen")
    try:
        same = held_out.reset(seed=4)[0]
        assert all(np.array_equal(a, same[k]) for k, a in lift.reset(seed=4, options={"split": "unseen"})[0].items())
    finally:
        held_out.close()
    before = lift.save_state()
    for wrong, name in ({"colour": "red"}, "colour"), ({"split": "tset"}, "tset"):
        with pytest.raises(ValueError, match=name):
            lift.reset(seed=5, options=wrong)
    np.testing.assert_array_equal(lift.save_state().physics, before.physics)


def assert_plain(value) -> None:
    """numpy's scalars are no JSON, and their types differ between machines."""
    if isinstance(value, dict):
        for name, part in value.items():
            assert type(name) is str
            assert_plain(part)
    elif isinstance(value, Scene):
        assert (type(value.held), type(value.stage), type(value.opening)) == (int, int, float)
    else:
        assert type(value) in (str, bool, int, float), repr(value)


def test_info_is_plain(lift):
    """A numpy scalar that ends in an error of json's long after the episode."""
    assert_plain(lift.reset(seed=0)[1])
    _, reward, terminated, truncated, info = lift.step(REST)
    assert_plain(info)
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
