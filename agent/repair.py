"""Make an interrupted, damaged or misaligned LeRobot data set whole again, in another folder.

    python -m agent.repair data=downloads/aloha out=data/aloha

What can be saved is saved, what was changed is told, and what cannot be saved is named; `data` stays as it is. Of other
formats, whose episodes are whole or not readable at all, `python -m agent.convert skip=true` takes what can be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from agent.launch.command import clear_errors, start
from envs.data.formats.extras import require_package
from envs.data.formats.folder import format_of
from envs.data.settings import from_settings


@dataclass(frozen=True)
class RepairConfig:
    """data, out: folders, read and written. changed: take files too that are not as this project wrote them."""

    data: str
    out: str
    changed: bool = False

    def __post_init__(self) -> None:
        if Path(self.data).resolve() == Path(self.out).resolve():
            raise ValueError("`out` must be another folder than `data`: what is there is never overwritten")


def repair(config: RepairConfig) -> list[str]:
    """Save what can be saved; what is to be said of it, a line each."""
    if format_of(config.data) != "lerobot":
        raise ValueError(
            f"{config.data} is no LeRobot data set; of other formats `python -m agent.convert skip=true` takes what "
            "can be read"
        )
    require_package("pyarrow", "repairing a LeRobot data set")
    from envs.data.formats.repair import repair as make_whole

    found = make_whole(Path(config.data), Path(config.out), config.changed)
    return [
        *(f"mended: {line}" for line in found.mended), *(f"lost: {line}" for line in found.lost),
        f"{found.saved} episodes in {config.out}; {len(found.mended)} things mended, {len(found.lost)} lost",
    ]  # fmt: skip


@hydra.main(version_base="1.3", config_path="../configs", config_name="repair")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        for line in repair(from_settings(RepairConfig, OmegaConf.to_container(cfg, resolve=True))):
            print(line)


if __name__ == "__main__":
    start(main)
