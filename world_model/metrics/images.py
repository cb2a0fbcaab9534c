"""How alike two images are."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def psnr(true: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of images (n, h, w, 3) u8 -> (n,) dB."""
    error = np.square(true.astype(np.float32) - other).mean((1, 2, 3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 1e-3))


def ssim(a: Tensor, b: Tensor, window: int = 7) -> Tensor:
    """Structural similarity (Wang et al. 2004) of images (..., h, w, 3) in 0 .. 255, pixel by pixel: (..., h, w)."""
    grey = [x.mean(-1).flatten(0, -3)[:, None] for x in (a, b)]

    def local(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, stride=1, padding=window // 2, count_include_pad=False)

    mean_a, mean_b = map(local, grey)
    var_a, var_b = (local(x.square()) - m.square() for x, m in zip(grey, (mean_a, mean_b), strict=True))
    both = local(grey[0] * grey[1]) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    index = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    index = index / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))
    return index.view(a.shape[:-1])
