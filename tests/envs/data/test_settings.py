"""Settings as a person writes them: what is meant is taken, what is wrong is one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from envs.data.settings import from_settings


@dataclass(frozen=True)
class Inner:
    candidates: int = 64
    noise: tuple[float, float] = (0.1, 0.2)


@dataclass(frozen=True)
class Settings:
    episodes: int
    out: str
    seed: int = 0
    minutes: float = 0.0
    draw: bool = False
    workers: int | None = None
    folder: Path = Path(".")
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    data: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    planner: Inner = field(default_factory=Inner)
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: int | tuple[int, int] = 64
    measure: Callable[[], float] | None = None


def made(**settings: Any) -> Settings:
    return from_settings(Settings, {"episodes": 1, "out": "o", **settings})


def test_what_is_meant_is_taken():
    """Catches a traceback, or a float that goes on as a count, for what YAML cannot tell apart."""
    settings = made(
        episodes=1.0, seed=1e6, out=20240501, minutes=3, workers=2.0, folder=7, data=["a", 5], sizes=[8, 4.0],
        planner={"noise": [0, 1]}, options={"a": [1, {"b": None}]},
    )  # fmt: skip
    assert (settings.episodes, settings.seed, settings.out, settings.workers) == (1, 1_000_000, "20240501", 2)
    assert all(type(value) is int for value in (settings.episodes, settings.seed, settings.workers, *settings.sizes))
    assert type(settings.minutes) is float and settings.folder == Path("7")
    assert settings.data == ("a", "5") and settings.sizes == (8, 4)
    assert settings.planner == Inner(64, (0.0, 1.0)) and type(settings.planner.noise[0]) is float
    assert settings.options == {"a": [1, {"b": None}]}
    assert made(shape=[2, 3]).shape == (2, 3) and made(shape=5).shape == 5 and made(workers=None).workers is None
    assert made(measure=max).measure is max and made(planner=Inner(3)).planner == Inner(3)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("episodes", 1.5, "`episodes` must be a whole number, got 1.5"),
        ("episodes", None, "`episodes` must be a whole number, got null"),
        ("episodes", True, "`episodes` must be a whole number, got true"),
        ("seed", "abc", "`seed` must be a whole number, got 'abc'"),
        ("seed", float("nan"), "`seed` must be a whole number, got nan"),
        ("seed", float("inf"), "`seed` must be a whole number, got inf"),
        ("minutes", float("nan"), "`minutes` must be a number, got nan"),
        ("minutes", "soon", "`minutes` must be a number, got 'soon'"),
        ("out", None, "`out` must be text, got null"),
        ("out", True, "`out` must be text, got true; put it in quotes: 'out=\"...\"'"),
        ("out", 1e6, "`out` must be text, got 1000000.0; put it in quotes: 'out=\"...\"'"),
        ("out", ["a"], "`out` must be text, got ['a']"),
        ("draw", 1, "`draw` must be true or false, got 1"),
        ("workers", "all", "`workers` must be a whole number or null, got 'all'"),
        ("wandb", "ofline", "`wandb` must be one of disabled, offline, online, got 'ofline', did you mean `offline`?"),
        ("data", "folder", "`data` must be a list, each text, got 'folder'; write data=[folder]"),
        ("data", None, "`data` must be a list, each text, got null"),
        ("data", ["a", None], "`data[1]` must be text, got null"),
        ("planner", {"noise": [1]}, "`planner.noise` must be a list of 2: a number, a number, got [1]"),
        ("planner", {"noise": [1, "b"]}, "`planner.noise[1]` must be a number, got 'b'"),
        ("planner", 3, "`planner` must be settings by name, got 3"),
        ("options", [1], "`options` must be settings by name, got [1]"),
        ("shape", "wide", "`shape` must be a whole number or a list of 2: a whole number, a whole number, got 'wide'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(name, value, message):
    """Catches a wrong setting that fails with a traceback far from where it was written, or is taken for another."""
    with pytest.raises(ValueError) as error:
        made(**{name: value})
    assert str(error.value) == message


def test_names():
    """Catches a mistyped setting that is ignored, and a missing one that fails inside the constructor."""
    with pytest.raises(ValueError, match=r"Settings has no setting `epsodes`, did you mean `episodes`\?; it has data,"):
        made(epsodes=3)
    with pytest.raises(ValueError, match=r"Inner has no setting `policy.planner.zzz`; it has candidates, noise$"):
        from_settings(Inner, {"zzz": 1}, "policy.planner")
    with pytest.raises(ValueError, match=r"the setting `out` is missing \(Settings needs it\)"):
        from_settings(Settings, {"episodes": 1})
