"""The simulator in any moment of any time line."""

from contextlib import closing

import numpy as np

from agent.build import EnvConfig
from agent.exploring.timeline import Timeline
from agent.exploring.worlds import RealWorld
from tests.agent.exploring.conftest import push


def act(world, timeline, at, x, steps):
    """Go on; the new moments, without a dream."""
    actions = [np.array(action, np.float32) for action in push(x, steps)]
    stepped = world.step(timeline, at, actions, range(steps))
    for i, (action, real) in enumerate(zip(actions, stepped.reals, strict=True)):
        at = timeline.add(at, action, "human", real, None).id
        timeline.observations[at] = stepped.observations[i]
    return at


def begin(world, seed):
    timeline = Timeline("seen", seed, "reach")
    real, timeline.observations[0], _ = world.begin(timeline)
    timeline.start(real, None)
    return timeline


def test_a_world_without_exact_states_replays(over_the_table):
    """Catches a branch that goes on from the wrong moment in an environment that cannot be put back."""
    with closing(RealWorld(over_the_table, 32)) as world:
        assert not world.restores and world.splits == ("train", "seen", *world.splits[2:])
        first, other = begin(world, 1), begin(world, 2)
        act(world, first, 0, 0.5, 4)
        act(world, other, 0, 0.1, 2)
        branch = act(world, first, 2, -0.5, 2)
        alone = begin(world, 1)
        way = act(world, alone, 0, 0.5, 2)
        way = act(world, alone, way, -0.5, 2)
        np.testing.assert_array_equal(first.observations[branch].state, alone.observations[way].state)
        assert (world.picture(first, 3) == 3).all()
        assert [moment.id for moment in first.path(branch)] == [0, 1, 2, 5, 6]


def test_an_episode_under_another_look():
    """Catches a look that changes where things are, that is lost when the world is put back, or that is the same."""
    with closing(RealWorld(EnvConfig(id="nextstate/Lift-v0", split="seen", options={"looks": "wide"}), 64)) as world:
        assert world.has_looks
        looks = [Timeline("seen", 5, "lift", scene_look=look) for look in (0, 2)]
        shown, reals = [], []
        for timeline in looks:
            real, timeline.observations[0], picture = world.begin(timeline)
            timeline.start(real, None)
            shown.append(picture)
            reals.append(real.simulated)
        np.testing.assert_array_equal(*reals)
        assert np.abs(np.float32(shown[0]) - shown[1]).mean() > 5
        for timeline, picture in zip(looks, shown, strict=True):
            np.testing.assert_array_equal(world.picture(timeline, 0), picture)


def test_lift_goes_back_exactly():
    """Catches a simulator whose branch differs from the same actions at once, in the middle of closing the jaws."""
    with closing(RealWorld(EnvConfig(id="nextstate/Lift-v0", split="seen"), 64)) as world:
        assert world.restores
        timeline, moved = begin(world, 5), np.array([[0.3, 0, -0.5, 0, 0, 0, 1]] * 4, np.float32)

        def go(at, steps):
            stepped = world.step(timeline, at, list(moved[:steps]), [])
            for action, real in zip(moved, stepped.reals, strict=False):
                at = timeline.add(at, action, "human", real, None).id
            return at, stepped.picture

        middle, _ = go(0, 2)
        end, picture = go(middle, 2)
        go(0, 1)
        again, same = go(middle, 2)
        np.testing.assert_array_equal(timeline[end].real.simulated, timeline[again].real.simulated)
        np.testing.assert_array_equal(picture, same)
        np.testing.assert_array_equal(picture, world.picture(timeline, end))
        seen = world.observe(timeline, [0, end])
        assert seen.keys() == {end} and seen[end].check(world.spec)
