"""The command: from settings to a policy that the openpi-client of the registry asks."""

import os
import re
import select
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

pytest.importorskip("websockets", reason="pip install 'nextstate[serve]'")
pytest.importorskip("openpi_client", reason="pip install --no-deps openpi-client")

from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from agent.build import EnvConfig, PolicyConfig, load_policy, make_env
from agent.evaluate import EvaluateConfig, evaluate
from agent.launch.command import RunError
from agent.planning.policies import ModelPolicy
from agent.serve import ServeConfig, opened, service_of
from agent.serving.server import Limits
from envs.data.settings import from_settings
from envs.sim.table import SPEC
from policies.base import OneByOne
from policies.remote.messages import pack, unpack
from tests.served import serving
from world_model.checkpoint import CheckpointError

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
START_S = 120  # that a busy machine takes to read a checkpoint


def settings(*overrides: str) -> ServeConfig:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return ServeConfig.of(OmegaConf.to_container(compose("serve", list(overrides)), resolve=True))


def test_the_shipped_checkpoint_over_the_network():
    """Catches a command that an unmodified openpi-client cannot ask, or that does not end when it is told to."""
    with closing(make_env(EnvConfig(id="nextstate/Lift-v0", split="seen"))) as env:
        raw, info = env.reset(seed=7000)
    asked = {f"observation/{name}": value for name, value in raw.items()} | {"prompt": info["instruction"]}
    words = ["port=0", "threads=1", "policy=model", "checkpoint=checkpoints/nextstate-s"]
    served = subprocess.Popen(
        [sys.executable, "-m", "agent.serve", *words], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert select.select([served.stdout], [], [], START_S)[0], "it does not start"
        line = served.stdout.readline()
        port = re.fullmatch(r"serving model at ws://127\.0\.0\.1:(\d+), Ctrl-C ends it\n", line)
        assert port, line + served.stderr.read()
        client = WebsocketClientPolicy("127.0.0.1", int(port[1]))
        assert client.get_server_metadata()["checkpoint"]["name"] == "nextstate-s"
        chunks = [client.infer({**asked, "seed": 7000})["actions"] for _ in range(2)]
        assert [chunk.shape for chunk in chunks] == [(8, 7), (8, 7)] and np.abs(chunks[0][:, :3]).max() > 0.1
    finally:
        served.send_signal(signal.SIGTERM)
        out, error = served.communicate(timeout=30)
    assert served.returncode == 0 and "stopped" in out and "Traceback" not in error

def test_what_cannot_start(monkeypatch, untrained):
    """Catches a server that opens to the network without a key, and one that reads a checkpoint before it says so."""
    monkeypatch.delenv("NEXTSTATE_API_KEY", raising=False)
    with pytest.raises(ValueError, match="0.0.0.0 needs an API key.*NEXTSTATE_API_KEY"):
        service_of(settings("host=0.0.0.0", f"checkpoint={untrained}"))
    monkeypatch.setenv("NEXTSTATE_API_KEY", "a key of twenty letters")
    service = service_of(settings("host=0.0.0.0", f"checkpoint={untrained}"))
    assert service.api_key == "a key of twenty letters" and service.about["checkpoint"]["name"] == untrained.name
    with pytest.raises(RunError, match="nowhere"):
        service_of(settings("checkpoint=nowhere"))
    with pytest.raises(ValueError, match="limits.frame_mb"):
        service_of(settings("limits.frame_mb=0", f"checkpoint={untrained}"))


def test_settings():
    """Catches a setting of the file that nothing reads, and one that is read and cannot be set."""
    config = settings("policy=planner", "limits.rate_hz=5", "+keys.state=joints", "batch=4")
    assert config.env is None and config.policy.checkpoint == "checkpoints/nextstate-s"
    assert from_settings(Limits, config.limits) == Limits(rate_hz=5), "the file's limits are the code's"
    assert config.keys == {"state": "joints"} and config.batch == 4
    assert settings("env=lift", "policy=random").env.id == "nextstate/Lift-v0"
    with pytest.raises(ValueError, match="did you mean `batch`"):
        settings("+bach=4")


def test_whose_robot_it_is(untrained, over_the_table):
    """Catches a served model that needs a simulator to be told its robot, and a policy that has no robot at all."""
    model = settings("policy=model", f"checkpoint={untrained}")
    with opened(model) as (policy, spec):
        assert isinstance(policy, ModelPolicy) and spec == SPEC
    with opened(settings("policy=planner", f"checkpoint={untrained}", "+policy.disturb.noise=0.1")) as (policy, spec):
        assert policy.execute == 2 and spec == SPEC
    with opened(settings("env=plugin", "env.id=tests.plugin.my_robot:Mark-v0", "policy=random")) as (policy, spec):
        assert [part.name for part in spec.cameras] and policy.batched
    with pytest.raises(ValueError, match="name one with env="), opened(settings("policy=play")):
        pass
    with pytest.raises(CheckpointError, match="nowhere"), opened(settings("checkpoint=nowhere")):
        pass


def test_robots_of_the_model_share_its_calls(untrained, make_episode):
    """Catches a batch in which one robot is answered with another's chunk."""
    policy, spec = load_policy(PolicyConfig(name="model", checkpoint=str(untrained)))
    with serving(policy, spec, wait_s=0.5) as (address, server):
        host, _, port = address.rpartition(":")
        clients = [WebsocketClientPolicy(host, int(port)) for _ in range(3)]
        requests = []
        for i in range(3):
            now = make_episode(i).obs(4 * i)
            images = {f"observation/{name}": image for name, image in now.images.items()}
            requests.append({**images, "observation/state": now.state, "prompt": "lift the cube"})
        alone = [client.infer({**request, "reset": True}) for client, request in zip(clients, requests, strict=True)]
        for client, request in zip(clients, requests, strict=True):  # sent together, read afterwards
            client._ws.send(client._packer.pack({**request, "reset": True}))
        together = [msgpack_numpy.unpackb(client._ws.recv(20)) for client in clients]
    assert [answer["server_timing"]["batch"] for answer in together] == [3, 3, 3]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one["actions"], other["actions"], atol=1e-5)
    assert not np.allclose(together[0]["actions"], together[1]["actions"], rtol=0, atol=1e-4)


@dataclass
class Forward:
    """Goes on at the pace that its episode's seed says."""

    execute: int = 2

    def init(self, instruction, seed=0):
        return seed

    def act(self, observation, state):
        chunk = np.zeros((4, 7), np.float32)
        chunk[:, 0] = 0.2 + 0.4 * (state % 3)
        return chunk, state


def test_a_served_policy_is_evaluated_like_one_that_is_here(reach, tmp_path):
    """Catches outcomes that depend on where the policy runs, a report that does not name the served checkpoint, and
    outcomes of two of them under one address in one report."""
    run = EvaluateConfig(
        env=replace(reach, split="seen"), policy=PolicyConfig(name="plugin", target="tests.agent.test_serve:Forward"),
        seed=5, episodes=4, out=str(tmp_path / "here"), workers=0, robots=2,
    )  # fmt: skip
    here = evaluate(run, "c")
    about = {"checkpoint": {"name": "served", "sha256": "1"}}
    with serving(OneByOne(Forward()), SPEC, about=about) as (address, server):
        policy = PolicyConfig(name="server", address=address, execute=None)
        away = replace(run, policy=policy, out=str(tmp_path / "away"))
        there = evaluate(away, "c")
        assert there["outcomes"] == here["outcomes"] and {o["success"] for o in here["outcomes"]} == {True, False}
        assert there["checkpoint"] == about["checkpoint"] and here["checkpoint"] is None
        server.metadata = pack({**unpack(server.metadata, 10_000), "checkpoint": {"name": "served", "sha256": "2"}})
        with pytest.raises(ValueError, match="other settings"):
            evaluate(away, "c")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "server"}, "needs policy.address=ws://"),
        ({"name": "server", "address": "127.0.0.1:8000"}, "needs policy.address=ws://"),
        ({"name": "server", "address": "ws://x", "timeout_s": 0}, "positive policy.timeout_s"),
        ({"name": "model", "execute": None}, "needs policy.execute"),
    ],
)
def test_settings_of_a_client(settings, says):
    """Catches an error of a socket's where a setting was mistyped."""
    with pytest.raises(ValueError, match=says):
        PolicyConfig(**settings)
