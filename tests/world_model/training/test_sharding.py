"""Which processes train together, and what they say."""

import sys

import pytest
import torch

from world_model.training import sharding
from world_model.training.loss import Losses
from world_model.training.sharding import Processes

CPU = torch.device("cpu")
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_without_torchrun_there_is_one():
    """Catches a plain training that waits for others, or that is spread for nothing."""
    processes = sharding.join(CPU, 8, {"PATH": "/bin", "MASTER_PORT": "29500"})
    assert processes.alone and processes.first and processes.share(8) == slice(0, 8)
    losses = Losses(torch.ones(()), {"a": torch.ones(())}, {"a": torch.ones(())})
    assert processes.whole_batch(losses) is losses and processes.agree(0.1) == 0.1
    model = torch.nn.Linear(2, 2)
    assert sharding.shard(model, processes).gather() is model


def test_shares_are_the_batch():
    """Catches windows that two processes learn from, or none."""
    each = [Processes(CPU, rank, 4).share(8) for rank in range(4)]
    assert [i for share in each for i in range(8)[share]] == list(range(8))


@pytest.mark.parametrize(
    ("changed", "batch", "message"),
    [
        ({"MASTER_PORT": None}, 8, "by RANK, WORLD_SIZE, LOCAL_RANK .* but MASTER_PORT is missing.*torchrun .*unset"),
        ({"RANK": None, "LOCAL_RANK": None}, 8, "by WORLD_SIZE this .* but RANK, LOCAL_RANK are missing"),
        ({"WORLD_SIZE": "two"}, 8, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "16"}, 8, "16 processes are more than `batch`, 8 windows: start 8 .*or set `batch=16`"),
        ({"WORLD_SIZE": "3"}, 8, "3 processes cannot share `batch`, 8 windows, evenly: start 2 .*or set `batch=9`"),
    ],
)  # fmt: skip
def test_what_cannot_train_together_says_what_to_do(changed, batch, message):
    """Catches a wait for processes that never come, and a traceback of torch's."""
    env = {name: value for name, value in {**TORCHRUN, **changed}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        sharding.join(CPU, batch, env)


def test_only_the_first_speaks(capsys):
    """Catches lines that every process prints, and an error of one alone that nobody sees."""
    for rank in ("0", "1"):
        with sharding.first_speaks({"RANK": rank}):
            print("out", rank)
            print("err", rank, file=sys.stderr)
    assert capsys.readouterr() == ("out 0\n", "err 0\n")


def test_an_error_is_said_once(monkeypatch):
    """Catches an error of all processes that is said by each, and one of another than the first that is not said."""
    waited = []
    monkeypatch.setattr(sharding.time, "sleep", waited.append)
    with pytest.raises(SystemExit, match="^train: no$"):
        sharding.leave("train: no", {"RANK": "0"})
    assert not waited
    with pytest.raises(SystemExit, match=r"^train: no \(process 3\)$"):
        sharding.leave("train: no", {"RANK": "3"})
    assert waited == [sharding.SETTLE]
