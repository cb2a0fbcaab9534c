"""Which key commands what: for our robots as the settings say, for others in the order of their actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envs.types import Spec

# For a robot whose actions the settings do not name: less and more of one after the other.
KEYS = (
    ("KeyA", "KeyD"), ("KeyS", "KeyW"), ("ArrowDown", "ArrowUp"), ("KeyQ", "KeyE"), ("KeyJ", "KeyL"), ("KeyK", "KeyI"),
)  # fmt: skip


@dataclass(frozen=True)
class Control:
    """A key that is held, or a button. action: name of the dimension that it commands. by: which way, -1 to 1, in
    shares of the range to either side of doing nothing. keys: as browsers name them (`KeyboardEvent.code`)."""

    action: str
    by: float
    label: str
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not -1 <= self.by <= 1 or not self.by:
            raise ValueError(f"a control's `by` must be between -1 and 1 and not 0, got {self.by}")


@dataclass(frozen=True)
class Bound:
    """A control of one robot. index: of the action's dimension. value: what it commands at full speed."""

    label: str
    keys: tuple[str, ...]
    index: int
    value: float


def bind(controls: Sequence[Control], spec: Spec) -> list[Bound]:
    """The controls of this robot: those whose actions it has, or else two for each of its actions."""
    names = [part.name for part in spec.action]
    fitting = [control for control in controls if control.action in names]
    if not fitting:
        free = [part.name for i, part in enumerate(spec.action) if i not in spec.grippers]
        keys = [*KEYS, *[((), ())] * len(free)]
        fitting = [
            Control(name, by, f"{name} {sign}", (key,) if key else ())
            for name, pair in zip(free, keys, strict=False)
            for key, by, sign in zip(pair, (-1.0, 1.0), "−+", strict=True)
        ]
    found = []
    for control in fitting:
        index = names.index(control.action)
        part, rest = spec.action[index], float(spec.rest[index])
        reach = part.high - rest if control.by > 0 else rest - part.low
        found.append(Bound(control.label, control.keys, index, rest + control.by * reach))
    return found
