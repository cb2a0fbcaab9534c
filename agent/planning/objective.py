"""What a future is worth: one number for each imagined candidate.

The planner takes any callable `(imagination, control steps a model step) -> scores`, so this one is only ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from world_model.types import Imagination

# keypoints (..., n, 3) in m, the robot's state (..., P), probability of holding something (...)
# -> how far the task has come, (...) in [0, 1]
Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Objective:
    """Expected discounted success of a future, less what the model is unsure of.

    Let T be the control steps from now until the first success, and the score E[gamma^T]. The value of a state is
    trained as gamma^(control steps from it until the next success): 1 where success holds already, 0 where none follows
    (`value_to_come`). So the value that is imagined after one chunk says all there is to say of it, and with a horizon
    of one model step, of M control steps or of the first few of them, the score is gamma^M value_1. The probability of
    success in that same state is contained in its value, and is not added.

    With a horizon of H model steps, split by when success comes first. A success within a chunk is seen at its end,
    where the arm rests and success still holds; at step h it is worth gamma^(M h). Where none came before step H, the
    value there takes over, and again contains success at H itself:

        E[gamma^T] = sum_{h<H}  gamma^(M h) P(first success at h)  +  gamma^(M H) P(none before H) value_H

    Values before the last say the same thing of the same future once more, and are not used. The last value alone
    would not do: it is still 1 when success came long before. The score is this less w mean_h uncertainty_h.

    Where a task says how far it has come in a scene, that can be asked of the imagined scene at a future's end too,
    as Visual Foresight (Ebert et al. 2018) asks how far its pixels still have to go. What a state is worth is learnt
    from whole episodes, of which a young model has seen few; where things are it has seen in every frame.

    discount: gamma of one control step, the one that the value was trained with; None until a checkpoint names it.
    uncertainty: w, what a metre of uncertainty costs, in units of value; 0 trusts every future.
    progress: what the whole of the task's progress is worth, in units of value; 0 asks the value alone.
    measure: the task's own, in numpy, so that the imagined scene is moved to the CPU for it; None where progress
        weighs nothing.
    """

    discount: float | None = None
    uncertainty: float = 0.1
    progress: float = 0.0
    measure: Measure | None = None

    def __post_init__(self) -> None:
        if self.progress and self.measure is None:
            raise ValueError("this task says of no scene how far it has come: set `objective.progress=0`")

    def for_value(self, discount: float, whose: str) -> Objective:
        """The same with the discount that a value was trained with; ValueError where another was asked for."""
        if self.discount not in (None, discount):
            raise ValueError(
                f"objective.discount={self.discount}, but the value of {whose} was trained with {discount}: "
                "set objective.discount=null, which takes that"
            )
        return replace(self, discount=discount)

    def __call__(self, imagined: Imagination, stride: int = 8) -> Tensor:
        """imagined: value, success, uncertainty (R, N, H); stride: control steps a model step -> scores (R, N) f32.

        Any other leading dimensions will do.
        """
        if self.discount is None:
            raise ValueError("this objective has no discount yet: take `for_value` of the one that the value has")
        value = torch.as_tensor(imagined.value, dtype=torch.float32)
        success = torch.as_tensor(imagined.success, dtype=torch.float32).clamp(0, 1)  # (R, N, H)
        unsure = torch.as_tensor(imagined.uncertainty, dtype=torch.float32)
        if not value.shape == success.shape == unsure.shape or value.ndim < 2:
            raise ValueError(
                "value, success and uncertainty must all be (R, N, H), got "
                f"{tuple(value.shape)}, {tuple(success.shape)}, {tuple(unsure.shape)}"
            )
        steps = stride * torch.arange(1, value.shape[-1] + 1, device=value.device)
        gamma = self.discount**steps  # (H,)
        failed = torch.cumprod(1 - success, dim=-1)  # (R, N, H) no success up to and including h
        none_before = torch.cat([torch.ones_like(failed[..., :1]), failed[..., :-1]], dim=-1)
        # What counts at h, where none came before: success, and at the last step the value, which has it in.
        worth = torch.cat([success[..., :-1], value[..., -1:]], dim=-1)
        score = (gamma * none_before * worth).sum(-1) - self.uncertainty * unsure.mean(-1)  # (R, N)
        return score + self.progress * self._progress(imagined).to(score) if self.progress else score

    def _progress(self, imagined: Imagination) -> Tensor:
        """(R, N) in the scene that is imagined last."""
        last = (imagined.keypoints[..., -1, :, :], imagined.state[..., -1, :], imagined.held[..., -1])
        return torch.from_numpy(np.asarray(self.measure(*(part.cpu().numpy() for part in last))))
