"""Policies learnt from made-up demonstrations whose rule is known: go to where the state says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.data.augmentation import Augmentation
from envs.data.store import EpisodeStore
from envs.types import Observation
from policies import train as command
from policies.learned.networks import NetworkConfig
from policies.learned.policy import LearnedPolicy, PolicyError
from policies.learned.windows import Windows
from tests.robots import HANDS, made_up

NETWORK = NetworkConfig(
    chunk=4, width=32, heads=2, hidden=64, encoder_layers=1, decoder_layers=1, dropout=0.0, latent=4, noise_steps=20,
    steps=5,
)  # fmt: skip


def demonstration(seed: int):
    """Every command but the grippers' is half of the first state dimension, in shares of the ranges."""
    episode = made_up(HANDS, seed, steps=20, expert=True, instruction="go")
    share = (episode.state[:-1, :1] - HANDS.state_low[0]) / (HANDS.state_high[0] - HANDS.state_low[0]) * 2 - 1
    expert = np.broadcast_to(0.5 * share, episode.expert.shape) * HANDS.action_high
    return replace(episode, expert=np.clip(expert, HANDS.action_low, HANDS.action_high).astype(np.float32))


@pytest.fixture
def config(tmp_path) -> command.TrainConfig:
    for seed in range(8):
        EpisodeStore(tmp_path / "data").write(demonstration(seed), f"{seed}")
    return command.TrainConfig(
        policy=NETWORK, augment=Augmentation(), data=(str(tmp_path / "data"),), imitate="expert", imagined=False,
        held_out=4, out=str(tmp_path / "out"), steps=150, batch=16, learning_rate=3e-3, warmup=0.1,
        weight_decay=0.0, average=0.9, measured=64, log_every=10, checkpoint_seconds=1e9, seed=0, threads=1,
        device="cpu", wandb="disabled",
    )  # fmt: skip


def observation(seed: int) -> tuple[Observation, np.ndarray]:
    episode = demonstration(seed)
    images = {name: each[5:7] for name, each in episode.images.items()}
    return Observation(images, episode.state[5:7]), episode.expert[5:7]


@pytest.mark.parametrize("kind", ["chunk", "diffusion"])
def test_it_learns_the_rule(config, kind):
    """Catches a network that reads nothing of the state, actions normalized one way and denormalized another, chunks
    that begin a step late, and a schedule that leaves noise in them."""
    report = command.run(replace(config, policy=replace(NETWORK, kind=kind)))
    assert report["action_error"]["held_out"] < 0.15
    policy = LearnedPolicy.load(config.out, execute=2, device="cpu", spec=HANDS)
    seen, wanted = observation(100)
    states = [policy.init("go", 1), policy.init("go", 2)]
    chunks, after = policy.act(seen, states)
    moves = [i for i, part in enumerate(HANDS.action) if not part.gripper]
    assert chunks.shape == (2, 4, len(HANDS.action)) and [each.asked for each in after] == [1, 1]
    half = ((HANDS.action_high - HANDS.action_low) / 2)[moves]
    assert (np.abs(chunks[:, 0, moves] - wanted[:, moves]) / half).mean() < 0.25
    grippers = list(HANDS.grippers)
    ends = np.stack([HANDS.action_low, HANDS.action_high])[:, grippers]
    assert ((chunks[..., None, grippers] == ends).any(-2)).all()
    alone, _ = policy.act(seen[:1], states[:1])
    np.testing.assert_allclose(alone[0], chunks[0], atol=1e-4)


def test_resuming_equals_never_having_stopped(config, tmp_path):
    """Catches lost optimizer state, and randomness that a new process draws otherwise."""
    few = replace(config, steps=6, policy=replace(NETWORK, dropout=0.2))
    command.run(few)
    stopped = replace(few, out=str(tmp_path / "stopped"), checkpoint_seconds=0.0)
    original = command.Training.save

    class Stop(Exception):
        pass

    def save(self, path, made_from):
        original(self, path, made_from)
        if self.step == 3:
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(command.Training, "save", save)
        command.run(stopped)
    command.run(stopped)
    first, second = (LearnedPolicy.load(each.out).network.state_dict() for each in (few, stopped))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ValueError, match="`learning_rate` was 0.003 and is 1.0"):
        command.run(replace(stopped, learning_rate=1.0))


def test_a_chunk_ends_with_its_episode(config):
    """Catches a chunk that goes on with the commands of the next episode."""
    windows = Windows.of([demonstration(0), demonstration(1)], ("go",), "expert")
    batch = windows.batch(torch.tensor([0, 18, 19, 20]), 4, windows.normal())
    assert batch.told.sum(1).tolist() == [4, 2, 1, 4]
    assert torch.equal(batch.actions[1, 1], batch.actions[2, 0])


def test_what_is_wrong_is_named(config):
    """Catches a traceback, or a policy that acts on a sentence it never heard."""
    unlabelled = replace(demonstration(0), expert=np.full_like(demonstration(0).expert, np.nan))
    store = EpisodeStore(config.data[0])
    for name in store.names():
        store.write(replace(unlabelled, seed=int(name)), name)
    with pytest.raises(command.EpisodeError, match="imitate=action"):
        command.run(config)
    command.run(replace(config, imitate="action", steps=2))
    policy = LearnedPolicy.load(config.out)
    with pytest.raises(ValueError, match="never trained on 'fly'"):
        policy.init("fly")
    with pytest.raises(ValueError, match="`execute` must lie between 1 and the chunk of 4"):
        LearnedPolicy.load(config.out, execute=9)
    path = command.Path(config.out) / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(PolicyError, match="damaged"):
        LearnedPolicy.load(config.out)
    with pytest.raises(PolicyError, match="policies.train"):
        LearnedPolicy.load(config.out + "-nothing")


def test_imagined_episodes_are_asked_for(config):
    """Catches dreams that are mixed with demonstrations because they lay in a folder of that name."""
    EpisodeStore(config.data[0]).write(replace(demonstration(8), source="imagined"), "8")
    with pytest.raises(ValueError, match="set imagined=true"):
        command.read(config)
    train, held, _ = command.read(replace(config, imagined=True))
    assert len(train) + len(held) == 9
