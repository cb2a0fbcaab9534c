"""How alike two images are."""

import numpy as np
import pytest
import torch

from world_model.metrics.images import psnr, ssim


def test_psnr():
    """Catches the usual slip of taking the logarithm of the wrong scale."""
    black = np.zeros((1, 64, 48, 3), np.uint8)
    assert psnr(black, black + 255)[0] == pytest.approx(0, abs=1e-4)
    assert psnr(black, black + 8)[0] == pytest.approx(30.07, abs=0.01)


def test_ssim_sees_structure():
    """Catches an index that is not one for equal images, or that a change of structure does not lower."""
    rng = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 64, 48, 3), generator=rng).float()
    torch.testing.assert_close(ssim(image, image), torch.ones(2, 64, 48))
    noise = ssim(image, image.flip(1))
    assert noise.shape == (2, 64, 48) and noise.mean() < 0.2 < ssim(image, 0.8 * image + 20).mean()
