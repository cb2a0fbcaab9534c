"""Which key commands what."""

import pytest

from agent.exploring.controls import Control, bind
from envs.sim.table import SPEC
from envs.types import ActionSpec, CameraSpec, Spec

LEFT = Control("dy", -1, "left", ("KeyA",))


def test_controls_command_shares_of_what_there_is():
    """Catches a key that commands the wrong dimension, or more than its range has to that side."""
    (left,) = bind([LEFT, Control("no such", 1, "nothing")], SPEC)
    assert (left.index, left.value, left.label, left.keys) == (1, -1.0, "left", ("KeyA",))
    lopsided = Spec((CameraSpec("eye", 8, 8),), (), (ActionSpec("wheel", 0.0, 4.0), ActionSpec("dy", -2.0, 6.0)), 10.0)
    assert [control.value for control in bind([LEFT, Control("dy", 0.5, "right")], lopsided)] == [-2.0, 3.0]


def test_a_robot_of_other_words_has_controls_too():
    """Catches a page without buttons for a robot that the settings do not know, and two controls on one key."""
    many = Spec((CameraSpec("eye", 8, 8),), (), tuple(ActionSpec(f"joint {i}") for i in range(9)), 10.0)
    found = bind([LEFT], many)
    assert [control.index for control in found] == [i for i in range(9) for _ in range(2)]
    keys = [key for control in found for key in control.keys]
    assert len(keys) == len(set(keys)) == 12 and not set(keys) & {"KeyM", "KeyR", "KeyB", "KeyP", "Space"}
    pads = [control.pad for control in found if control.pad]
    assert len(pads) == len(set(pads)) == 12 and not set(pads) & {"button0", "button1", "button9"}
    assert {control.index for control in bind([], SPEC)} == set(range(6)), "jaws have a key of their own"


@pytest.mark.parametrize("by", [0.0, 1.5, -2.0])
def test_a_control_commands_something(by):
    """Catches a setting that does nothing, or that leaves the range."""
    with pytest.raises(ValueError, match="must be between -1 and 1 and not 0"):
        Control("dx", by, "away")


@pytest.mark.parametrize("pad", ["axis1", "+axis4", "button17", "button", "left stick"])
def test_what_a_gamepad_does_not_have(pad):
    """Catches a setting that no gamepad can carry out, of which nobody is told."""
    with pytest.raises(ValueError, match="must be like -axis1"):
        Control("dx", 1, "away", pad=pad)
