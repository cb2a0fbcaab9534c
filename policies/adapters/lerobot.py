"""LeRobot's policy interface on any policy of ours: `reset`, `select_action` and `predict_action_chunk` on dicts of
torch tensors.

The keys and shapes are those of lerobot.policies.pretrained.PreTrainedPolicy and of what its
lerobot.envs.utils.preprocess_observation makes of an environment's observation. LeRobot itself is not needed, and this
is no subclass of its class: it has no config, no `forward` and nothing to train.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.types import Observation, Spec, check_action
from policies.base import Policy, SinglePolicy, batched

STATE, IMAGE, IMAGES, TASK = "observation.state", "observation.image", "observation.images", "task"
TOLERANCE = 1e-3  # how far a picture may leave [0, 1], after somebody resized it


class LeRobotPolicy:
    """A policy with LeRobot's interface. As theirs it remembers its episodes itself, one for each row of a batch.

    A batch holds `observation.images.CAMERA` (B, 3, h, w) float in [0, 1] (`observation.image` where there is only one
    camera), `observation.state` (B, P) in the robot's units, not normalized, and `task`, a text or one for each row.
    Actions come in the robot's units too. ValueError names what is missing or wrong.
    """

    def __init__(self, policy: Policy | SinglePolicy, spec: Spec, seed: int = 0) -> None:
        """seed: of the first episode; the others follow."""
        if getattr(policy, "privileged", False):
            raise ValueError(f"policy {type(policy).__name__} reads the simulator's truth, which no batch holds")
        self.policy, self.spec, self.seed = batched(policy), spec, seed
        self.reset()

    def reset(self) -> None:
        """Every row begins a new episode."""
        self.tasks: list[str] = []
        self.states: list[Any] = []
        self.queue: deque[Tensor] = deque()

    def select_action(self, batch: Mapping[str, Any]) -> Tensor:
        """The next action of every row (B, A): the policy is asked whenever `execute` of its last chunk are done."""
        if self.queue and self._tasks(batch) != self.tasks:
            self.queue.clear()  # what was planned was for another task
        if not self.queue:
            self.queue.extend(self.predict_action_chunk(batch)[:, : self.policy.execute].unbind(1))
        return self.queue.popleft()

    def predict_action_chunk(self, batch: Mapping[str, Any]) -> Tensor:
        """The chunks (B, M, A) f32 of every row, on the batch's device.

        A policy with a memory takes it that the first `execute` actions are executed before it is asked again.
        """
        observations, tasks = self._observations(batch), self._tasks(batch)
        if self.tasks and len(tasks) != len(self.tasks):
            raise ValueError(f"a batch of {len(tasks)} rows after one of {len(self.tasks)}: call `reset` between them")
        states = []
        for i, task in enumerate(tasks):
            goes_on = bool(self.tasks) and task == self.tasks[i]
            states.append(self.states[i] if goes_on else self._begin(task))
        chunks, self.states = self.policy.act(observations, states)
        self.tasks = tasks
        return torch.from_numpy(check_action(chunks, self.spec)).to(self._any(batch).device)

    def _begin(self, task: str) -> Any:
        state = self.policy.init(task, self.seed)
        self.seed += 1
        return state

    def _keys(self, batch: Mapping[str, Any]) -> dict[str, str]:
        """Camera -> key."""
        names = [camera.name for camera in self.spec.cameras]
        if len(names) == 1 and IMAGE in batch:
            return {names[0]: IMAGE}
        return {name: f"{IMAGES}.{name}" for name in names}

    def _any(self, batch: Mapping[str, Any]) -> Tensor:
        """A tensor of the batch, which says how many rows there are, and where."""
        key = next(iter(self._keys(batch).values()))
        if not isinstance(batch.get(key), Tensor):
            raise ValueError(f"the batch has no tensor `{key}`; it has {', '.join(sorted(batch)) or 'nothing'}")
        return batch[key]

    def _tasks(self, batch: Mapping[str, Any]) -> list[str]:
        """One for each row."""
        rows, tasks = len(self._any(batch)), batch.get(TASK)
        if isinstance(tasks, str):
            return [tasks] * rows
        if not isinstance(tasks, Sequence) or not all(isinstance(task, str) for task in tasks):
            raise ValueError(f"`{TASK}` must be text, one or one for each row, got {type(tasks).__name__}")
        if len(tasks) not in (1, rows):
            raise ValueError(f"`{TASK}` has {len(tasks)} texts for {rows} rows")
        return list(tasks) if len(tasks) == rows else list(tasks) * rows

    def _observations(self, batch: Mapping[str, Any]) -> Observation:
        """B leading."""
        rows = len(self._any(batch))
        images = {}
        for name, key in self._keys(batch).items():
            if not isinstance(batch.get(key), Tensor):
                raise ValueError(f"the batch has no tensor `{key}`; it has {', '.join(sorted(batch))}")
            images[name] = _picture(key, batch[key])
        state = torch.zeros(rows, 0) if not self.spec.state else batch.get(STATE)
        if not isinstance(state, Tensor) or state.shape != (rows, len(self.spec.state)):
            got = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise ValueError(f"`{STATE}` must be a tensor ({rows}, {len(self.spec.state)}), got {got}")
        return Observation(images, state.detach().cpu().numpy().astype(np.float32)).check(self.spec)


def _picture(key: str, image: Tensor) -> np.ndarray:
    """(B, 3, h, w) float in [0, 1] -> (B, h, w, 3) u8."""
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise ValueError(f"`{key}` must be float (B, 3, h, w), got {image.dtype} {tuple(image.shape)}")
    low, high = (float(end) for end in image.aminmax()) if image.numel() else (0.0, 1.0)
    if not (-TOLERANCE <= low and high <= 1 + TOLERANCE):  # NaN is refused too
        raise ValueError(f"`{key}` must lie between 0 and 1, got {low:.3g} to {high:.3g}: is it normalized already?")
    return (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
