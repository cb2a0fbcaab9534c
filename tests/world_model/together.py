"""What each process does in `test_train_sharded.py`, as torchrun starts it: `together.py FOLDER SETTINGS...`.

It begins a training in FOLDER/two and is killed after half of it, then runs the command on what FOLDER/one holds.
"""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tests.world_model.runs import read_config, settings
from world_model import train
from world_model.training import sharding

HALF = 3


def main(folder: Path, *overrides: str) -> None:
    config = replace(read_config(folder, *overrides), out=str(folder / "two"))
    processes = sharding.join(torch.device("cpu"), config.batch)
    data = train.prepare(config, torch.device("cpu"), processes)
    sharding.shard(data.model, processes)
    losses = []
    for progress, found in train.train(config, data, processes):
        losses.append(found)
        if progress.step == HALF:
            break
    (folder / f"losses-{processes.rank}.json").write_text(json.dumps(losses))
    sys.argv = ["world_model.train", *settings(folder), *overrides, f"out={folder / 'one'}"]
    runpy.run_module("world_model.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
