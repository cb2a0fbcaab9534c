"""What a future is worth: one number for each imagined candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from world_model.model import Imagination


@dataclass(frozen=True)
class Objective:
    """Expected discounted success of a future, less what the model is unsure of.

    The value ids say gamma^(control steps until success), so a future of H model steps is worth

        sum_h  gamma^(M h) P(first success at h)  +  gamma^(M H) P(none yet) value_H  -  w mean_h uncertainty_h

    Success and the last value are two readings of the same thing; whichever is surer carries the score.

    discount: gamma of one control step, the one that the value was trained with.
    uncertainty: w, what a metre of uncertainty costs, in units of value; 0 trusts every future.
    """

    discount: float = 0.99
    uncertainty: float = 0.1

    def __call__(self, imagined: Imagination, chunk: int = 8) -> Tensor:
        """imagined: value, success, uncertainty (N, H); chunk: control steps M a model step -> scores (N,) f32."""
        value = torch.as_tensor(imagined.value, dtype=torch.float32)
        success = torch.as_tensor(imagined.success, dtype=torch.float32).clamp(0, 1)  # (N, H)
        unsure = torch.as_tensor(imagined.uncertainty, dtype=torch.float32)
        if not value.shape == success.shape == unsure.shape or value.ndim != 2:
            raise ValueError(
                "value, success and uncertainty must all be (N, H), got "
                f"{tuple(value.shape)}, {tuple(success.shape)}, {tuple(unsure.shape)}"
            )
        steps = chunk * torch.arange(1, value.shape[1] + 1, device=value.device)
        gamma = self.discount**steps  # (H,)
        failed = torch.cumprod(1 - success, dim=1)  # (N, H) no success up to and including h
        failed_before = torch.cat([torch.ones_like(failed[:, :1]), failed[:, :-1]], dim=1)
        reached = (gamma * failed_before * success).sum(1)  # (N,)
        return reached + gamma[-1] * failed[:, -1] * value[:, -1] - self.uncertainty * unsure.mean(1)
