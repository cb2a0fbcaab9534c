import colorsys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import envs  # noqa: F401  (registers the ids)
from envs.sim import looks, meshes
from envs.sim.looks import LOOKS, POSITION, TARGET, Look
from envs.sim.patterns import SIZE, draw_pattern
from envs.sim.splits import FACTORS, FAR, SPLITS, outside
from envs.tasks.fold_half import FoldHalf
from envs.tasks.lift import Lift

DRAWS = 60  # looks of each split; training draws more, but from the same ranges
TASKS = {"Lift": Lift, "FoldHalf": FoldHalf}
OF_A_LOOK = [split for split in SPLITS if split not in ("wild", "unseen.start")]


def degrees_between(axes: np.ndarray, others: np.ndarray) -> float:
    return float(np.degrees(Rotation.from_matrix(axes.T @ others).magnitude()))


def left(look: Look) -> set[str]:
    """The factors in which a look leaves what training shows."""
    table, found = look.surfaces[looks.TABLE], set()
    if isinstance(table, str) and table not in looks.WIDE_TEXTURES:
        assert table in ("red-wood", "gray-felt")
        found.add("texture")
    if not 0.4 < look.light.min() <= look.light.max() < 0.95:
        found.add("light")
    moved = float(np.linalg.norm(look.camera_position - POSITION))
    turned = degrees_between(looks._axes(POSITION), look.camera_axes)
    if moved > 0.09:
        assert moved == pytest.approx(0.1) and turned == pytest.approx(10)
        found.add(FAR)
    elif moved > 0.02 or turned > 2:
        assert 0.03 <= moved <= 0.05 and 3 - 1e-6 <= turned <= 5 + 1e-6
        found.add("camera")
    return found


@pytest.mark.parametrize("kind", LOOKS)
@pytest.mark.parametrize("split", OF_A_LOOK)
def test_what_is_left_out_of_training(split, kind):
    """A texture, brightness or camera of `unseen` that training shows after all: `unseen` would then be seen; or one
    of its factors that stays within training, or brings another along."""
    expected = outside(split) & {"texture", "light", "camera", FAR}
    for seed in range(DRAWS):
        look = Look.draw(np.random.default_rng(seed), outside(split), kind)
        assert left(look) == expected, f"look {seed}"
        assert look.camera_fovy == 38 and look.wrist_fovy == 75
        for surface in look.surfaces.values():
            assert not isinstance(surface, str) or surface in {*looks.WIDE_TEXTURES, *looks.UNSEEN_TEXTURES}
        assert set(look.surfaces) <= {looks.TABLE, looks.FLOOR}
        if look.wrist_shift is not None:
            assert kind == "wide" and np.linalg.norm(look.wrist_shift) <= 0.01
            assert np.linalg.norm(look.wrist_turn) <= np.radians(2) + 1e-9
        # The whole of the task has to stay in sight: where the camera looks is not far from where it always does.
        forward = -look.camera_axes[:, 2]
        at = look.camera_position + forward * (TARGET[2] - look.camera_position[2]) / forward[2]
        assert np.linalg.norm(at - TARGET) < 0.13


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("split", OF_A_LOOK)
def test_hues_and_sizes_of_unseen_are_left_out_of_training(make, split):
    """A colour or a size of `unseen` that training shows, or one of `unseen.hue` with another size."""
    env, found = make(split=split), set()
    hues, sizes = ((0.3, 0.8), (0.040, 0.046)) if make is Lift else ((0.78, 1.0), (0.027, 0.0315))
    for seed in range(DRAWS):
        env._draw(np.random.default_rng(seed), unseen="size" in outside(split))
        env._draw_look(np.random.default_rng(seed), unseen="hue" in outside(split))
        size = 2 * env._half if make is Lift else env._spacing
        is_unseen_hue = hues[0] - 1e-6 <= colorsys.rgb_to_hsv(*env._color)[0] <= hues[1] + 1e-6
        found.add((is_unseen_hue, not sizes[0] <= size <= sizes[1]))
    assert found == {("hue" in outside(split), "size" in outside(split))}


def test_unseen_is_one_split_whatever_training_shows():
    """Two checkpoints, of plain and of wide training, compared on different scenes."""
    for seed in range(20):
        plain, wide = (Look.draw(np.random.default_rng(seed), frozenset(FACTORS), kind) for kind in LOOKS)
        for name in ("table_tint", "light", "light_direction", "camera_position", "camera_axes"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(wide, name))
        assert plain.surfaces == wide.surfaces and wide.wrist_shift is None


def test_wide_looks_are_wide():
    """Draws that all come from one kind of texture, or lights that do not vary, would teach nothing."""
    drawn = [Look.draw(np.random.default_rng(seed), frozenset(), "wide") for seed in range(120)]
    tables = [look.surfaces[looks.TABLE] for look in drawn]
    names = [table for table in tables if isinstance(table, str)]
    assert 40 < len(names) < 80 and len(set(names)) > 18
    tints, lights = (np.stack([getattr(look, name) for look in drawn]) for name in ("table_tint", "light"))
    assert tints.min() < 0.37 and tints.max() > 0.98 and lights.min() < 0.55 and lights.max() > 0.9
    assert np.ptp([look.light_direction[0] for look in drawn]) > 1.5


def test_patterns_can_be_seen():
    """Textures without any light in them, or all of one colour: black tables, or the same one every time."""
    patterns = [draw_pattern(np.random.default_rng(seed)) for seed in range(60)]
    assert all(pattern.shape == (SIZE, SIZE, 3) and pattern.dtype == np.uint8 for pattern in patterns)
    means = np.stack([pattern.mean((0, 1)) for pattern in patterns])
    assert means.max(1).min() > 30 and (means.std(0) > 25).all()
    assert np.array_equal(draw_pattern(np.random.default_rng(3)), patterns[3])


def pictures() -> set:
    return {path for folder in meshes.cache_folders() for path in folder.glob("*.png")}


def test_a_pattern_is_on_the_table_and_in_no_file(monkeypatch):
    """Pixels that never reach the renderer leave a grey checkerboard; files would pile up, one for every episode."""
    red = np.full((SIZE, SIZE, 3), (200, 20, 20), np.uint8)
    draw = Look.draw
    env = Lift()
    try:
        env.reset(seed=0)
        before = pictures()
        monkeypatch.setattr(Look, "draw", lambda *args: replace(draw(*args), surfaces={looks.TABLE: red}))
        obs, _ = env.reset(seed=0)
    finally:
        env.close()
    table = obs["main"][40:, :10].astype(int)
    assert (table[..., 0] > 90).all() and (table[..., 1:] < 60).all()
    assert pictures() == before


def test_a_texture_that_there_is_not():
    """A file name that MuJoCo cannot open, told in its own words, twenty calls deep."""
    texture = ElementTree.Element("texture", name="tex-ceramic")
    with pytest.raises(ValueError, match="no texture 'red-felt': it has .*red-wood"):
        looks.set_surface(texture, "red-felt")


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
def test_looks_that_there_are_not(make):
    """A typo that trains on plain looks for hours."""
    with pytest.raises(ValueError, match="looks must be plain or wide, got 'broad'"):
        make(looks="broad")


def test_the_settings_say_what_is_the_default():
    """Commands that show other looks than an environment that is made by hand."""
    root = looks.Path(__file__).parents[3]
    for name in ("lift", "fold_half"):
        assert f"looks: {looks.DEFAULT_LOOKS} " in (root / "configs" / "env" / f"{name}.yaml").read_text()
    assert gym.spec("nextstate/Lift-v0").kwargs == {}
