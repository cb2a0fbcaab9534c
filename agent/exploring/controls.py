"""Which key and what of a gamepad commands what: for our robots as the settings say, for others in the order of their
actions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from envs.types import Spec

# For a robot whose actions the settings do not name: less and more of one after the other.
KEYS = (
    ("KeyA", "KeyD"), ("KeyS", "KeyW"), ("ArrowDown", "ArrowUp"), ("KeyQ", "KeyE"), ("KeyJ", "KeyL"), ("KeyK", "KeyI"),
)  # fmt: skip
PADS = (
    ("-axis0", "+axis0"), ("+axis1", "-axis1"), ("+axis3", "-axis3"), ("button4", "button5"), ("-axis2", "+axis2"),
    ("button6", "button7"),
)  # fmt: skip
PAD = re.compile(r"[+-]axis[0-3]|button([0-9]|1[0-6])")


@dataclass(frozen=True)
class Control:
    """A key that is held, or a button. action: name of the dimension that it commands. by: which way, -1 to 1, in
    shares of the range to either side of doing nothing. keys: as browsers name them (`KeyboardEvent.code`). pad: what
    of a gamepad, `-axis1` or `button4` by the numbers of browsers' standard layout; empty for nothing."""

    action: str
    by: float
    label: str
    keys: tuple[str, ...] = ()
    pad: str = ""

    def __post_init__(self) -> None:
        if not -1 <= self.by <= 1 or not self.by:
            raise ValueError(f"a control's `by` must be between -1 and 1 and not 0, got {self.by}")
        if self.pad and not PAD.fullmatch(self.pad):
            raise ValueError(f"a control's `pad` must be like -axis1, +axis0 or button4, got {self.pad!r}")


@dataclass(frozen=True)
class Bound:
    """A control of one robot. index: of the action's dimension. value: what it commands at full speed."""

    label: str
    keys: tuple[str, ...]
    pad: str
    index: int
    value: float


def bind(controls: Sequence[Control], spec: Spec) -> list[Bound]:
    """The controls of this robot: those whose actions it has, or else two for each of its actions."""
    names = [part.name for part in spec.action]
    fitting = [control for control in controls if control.action in names]
    if not fitting:
        free = [part.name for i, part in enumerate(spec.action) if i not in spec.grippers]
        fitting = [
            Control(name, by, f"{name} {sign}", (key,) if key else (), pad)
            for name, *pairs in zip_longest(free, KEYS[: len(free)], PADS[: len(free)], fillvalue=("", ""))
            for key, pad, by, sign in zip(*pairs, (-1.0, 1.0), "−+", strict=True)
        ]
    found = []
    for control in fitting:
        index = names.index(control.action)
        part, rest = spec.action[index], float(spec.rest[index])
        reach = part.high - rest if control.by > 0 else rest - part.low
        found.append(Bound(control.label, control.keys, control.pad, index, rest + control.by * reach))
    return found
