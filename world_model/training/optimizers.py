"""Muon for matrices and AdamW for the rest, as one optimizer whose state can be kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from world_model.training.muon import Muon


class MuonAdamW:
    """matrices, others: parameters by name, which Muon and AdamW update. precision: what Muon orthogonalizes in.

    muon_decay, adamw_decay: weight decay. like_adamw: as `Muon` takes it.
    """

    def __init__(
        self, matrices: Mapping[str, Parameter], others: Mapping[str, Parameter], muon_decay: float,
        adamw_decay: float, betas: tuple[float, float], precision: torch.dtype, like_adamw: bool = False,
    ):  # fmt: skip
        self.named = {**matrices, **others}
        self.muon = Muon(matrices.values(), weight_decay=muon_decay, like_adamw=like_adamw, precision=precision)
        self.adamw = torch.optim.AdamW(others.values(), betas=betas, weight_decay=adamw_decay)
        self._owner = {name: self.muon if name in matrices else self.adamw for name in self.named}

    def zero_grad(self) -> None:
        self.muon.zero_grad()
        self.adamw.zero_grad()

    def step(self, muon_rate: float, adamw_rate: float) -> None:
        """One update at these learning rates."""
        for part, rate in ((self.muon, muon_rate), (self.adamw, adamw_rate)):
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on but the parameters, as `<kind>/<parameter>`."""
        return {
            f"{kind}/{name}": value
            for name, parameter in self.named.items()
            for kind, value in self._owner[name].state.get(parameter, {}).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for key, value in state.items():
            kind, name = key.split("/")
            parameter = self.named[name]
            # AdamW's count of steps stays on the CPU
            kept = value if value.dim() == 0 else value.to(parameter.device)
            self._owner[name].state[parameter][kind] = kept
