"""Folders of pretrained policies for tests, as `tests/lookalike` reads them: a LeRobot for those who have none."""

import json
import os
import sys
from pathlib import Path

from envs.types import Spec

LOOKALIKE = Path(__file__).parent / "lookalike"


def pretrained(folder: Path, spec: Spec, rename_map: dict[str, str] | None = None, **settings) -> str:
    """A policy for this robot, under the names that our LeRobot writer uses. settings: of its config that differ.
    rename_map: of its preprocessor."""
    inputs = {f"observation.images.{c.name}": {"type": "VISUAL", "shape": [3, c.height, c.width]} for c in spec.cameras}
    if spec.state:
        inputs["observation.state"] = {"type": "STATE", "shape": [len(spec.state)]}
    config = {
        "type": "telling", "input_features": inputs, "n_action_steps": 2, "chunk_size": 4,
        "output_features": {"action": {"type": "ACTION", "shape": [len(spec.action)]}}, **settings,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    step = {"registry_name": "device_processor", "rename_map": rename_map or {}}
    (folder / "policy_preprocessor.json").write_text(json.dumps({"steps": [step]}))
    return str(folder)


def find_lookalike(monkeypatch) -> str:
    """The interpreter that finds the look-alike, for as long as the test lasts."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(LOOKALIKE), os.environ.get("PYTHONPATH", "")]))
    return sys.executable
