"""What survives in a tokenizer."""

import numpy as np
import torch

from envs.data.camera import CameraPose
from envs.sim.table import SPEC
from tests.robots import ARM, HANDS, made_up
from world_model.metrics.reconstruction import Reconstruction, bound_of, evaluate, still_kept
from world_model.tokens.images import ImageConfig, ImageTokenizer


def test_still_patches():
    """Catches moving patches being counted, an id that flickers on a still one being missed, and rows and columns
    turned round."""
    images = np.zeros((2, 16, 32, 3), np.uint8)
    images[1, :8, 8:16] = 90  # the second patch moves
    images[1, 8:, 8:] = 2  # noise
    ids = np.zeros((2, 8), int)
    ids[1, 1], ids[1, 5] = 1, 1
    kept = still_kept(images, ids)
    assert len(kept) == 7 and kept.sum() == 6


def test_figures_weigh_images_not_episodes():
    """Catches a mean of means, in which a short episode counts as much as a long one."""
    long = Reconstruction({"a_psnr": 90.0}, {"a_psnr": 3})
    both = long + Reconstruction({"a_psnr": 10.0, "a_object_lost": 1}, {"a_psnr": 1, "a_object_lost": 4})
    assert both.figures() == {"a_psnr": 25.0, "a_object_lost": 0.25, "a_object_lost_images": 4}


def test_bounds():
    """Catches a loss that is kept from below, and a bound on how many images a figure rests on."""
    assert bound_of("side_psnr").keeps(28) and not bound_of("side_psnr").keeps(27.9)
    assert bound_of("left_object_lost").keeps(0.02) and not bound_of("left_object_lost").keeps(0.03)
    assert bound_of("left_object_lost_images") is None


def test_each_camera_has_its_figures(make_episode):
    """Catches a camera that is not measured, and objects that are looked for where no pose is known."""
    pose = CameraPose((0.50, 0.0, 1.42), (0.03, 0.0, 0.83), 38.0)
    for episode, poses in ((made_up(ARM), {}), (made_up(HANDS), {}), (make_episode(0), {"main": pose})):
        torch.manual_seed(0)
        config = ImageConfig(episode.spec.cameras, (5, 5, 5), width=16, encoder_blocks=1, decoder_blocks=1)
        found = evaluate(episode, ImageTokenizer(config).eval(), poses, stride=4)
        names = {f"{c.name}_{kind}" for c in episode.spec.cameras for kind in ("psnr", "still_kept")}
        if episode.spec == SPEC:
            names.add("main_outline_iou")
        assert set(found.sums) == names
        assert all(found.counts[f"{c.name}_psnr"] == len(episode.state[::4]) for c in episode.spec.cameras)
