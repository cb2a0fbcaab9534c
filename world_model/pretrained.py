"""Checkpoints as the Hugging Face hub knows them: `from_pretrained`, `save_pretrained`, `push_to_hub`, a model card.

    from world_model.pretrained import Pretrained

    model = Pretrained.from_pretrained("checkpoints/nextstate-s")  # a folder, or the id of one on the hub
    model.save_pretrained("mine", reports="checkpoints/reports")   # with a card that shows what was measured of it
    model.push_to_hub("me/nextstate-s", private=True)

Nothing is asked of the network unless `local_files_only=False` says so, or something is pushed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from world_model.checkpoint import REQUIRED, CheckpointError, Loaded, load

FILES = ("manifest.json", *REQUIRED)
CARD = """---
library_name: nextstate
pipeline_tag: robotics
tags: [world-model, robot-manipulation, mujoco]
---

# {name}

A world model for robot manipulation: one transformer over text, image, state, value and action tokens that proposes
actions, imagines what follows and judges it. {parameters:.1f}M parameters; cameras {cameras}; {state} state and
{action} action dimensions at {hertz:g} Hz. It was trained on: {instructions}.

```
python -m agent.evaluate env=lift policy=planner checkpoint=FOLDER split=seen seed=1000 episodes=50
```

## What was measured of it

{figures}

Checkpoint `{sha256}`.
"""


class Pretrained(ModelHubMixin):
    """A checkpoint that was read. folder: where it lies. reports: a folder with reports of `agent.evaluate`, of which
    the model card shows those of this very checkpoint."""

    def __init__(self, loaded: Loaded, folder: Path, reports: str | os.PathLike[str] | None = None) -> None:
        self.loaded, self.folder, self.reports = loaded, folder, reports

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, device: torch.device | None = None,
        revision: str | None = None, cache_dir: str | os.PathLike[str] | None = None, local_files_only: bool = True,
        token: str | bool | None = None,
    ) -> Pretrained:  # fmt: skip
        """Read a folder, or a checkpoint of the hub: from the cache, or with `local_files_only=False` from there.

        CheckpointError where there is none, or it is damaged.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            try:
                folder = Path(snapshot_download(
                    str(pretrained_model_name_or_path), revision=revision, cache_dir=cache_dir, token=token,
                    local_files_only=local_files_only, allow_patterns=list(FILES),
                ))  # fmt: skip
            except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
                todo = "to download it, set local_files_only=False" if local_files_only else "is its name right?"
                raise CheckpointError(
                    f"there is no folder {pretrained_model_name_or_path}, and no such checkpoint "
                    f"{'in the cache of the hub' if local_files_only else 'on the hub'}: {todo}"
                ) from error
        return cls(load(folder, device), folder)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, reports: str | os.PathLike[str] | None = None, **kwargs: Any
    ) -> str | None:
        """Write the checkpoint and its card; with `push_to_hub=True` and `repo_id`, on the hub too."""
        self.reports = reports or self.reports
        return super().save_pretrained(save_directory, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Byte for byte what was read, so that it stays the same checkpoint."""
        if save_directory.resolve() != self.folder.resolve():
            for name in FILES:
                shutil.copyfile(self.folder / name, save_directory / name)
            load(save_directory)  # whole, or an error that says what is not

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """What it is, and what the reports say of it."""
        loaded, spec = self.loaded, self.loaded.spec
        cameras = ", ".join(f"{camera.name} {camera.height}x{camera.width}" for camera in spec.cameras)
        found = list(_results(Path(self.reports), loaded.sha256)) if self.reports else []
        rows = ["| task, split | policy | successes | 95 % | command |", "|---|---|---|---|---|", *found]
        return ModelCard(CARD.format(
            name=self.folder.resolve().name, sha256=loaded.sha256, cameras=cameras, hertz=spec.control_hz,
            state=len(spec.state), action=len(spec.action), instructions=", ".join(loaded.meta["instructions"]),
            parameters=sum(p.numel() for p in loaded.model.parameters()) / 1e6,
            figures="\n".join(rows) if found else "No report of this checkpoint was at hand.",
        ))  # fmt: skip


def _results(reports: Path, sha256: str) -> Iterator[str]:
    """Rows of the card's table, of the evaluations of the checkpoint with this sha256."""
    for path in sorted(reports.glob("*.json")):
        report = json.loads(path.read_text())
        if "success_rate" not in report or (report.get("checkpoint") or {}).get("sha256") != sha256:
            continue
        low, high = (round(100 * bound) for bound in report["ci95"])
        successes = sum(outcome["success"] for outcome in report["outcomes"])
        yield (
            f"| {report['env']['id']}, {report['split']} | {report['policy']} | {successes} of {report['episodes']} | "
            f"{low} to {high} | `{report['command']}` |"
        )
