"""A policy that is elsewhere: the same as if it were here, and a clear word where it is not there."""

import gc
import importlib
import socket
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("websockets", reason="pip install 'nextstate[serve]'")

from websockets.sync.server import serve

from agent.serving.server import Limits
from envs.types import Observation
from policies.base import OneByOne
from policies.remote.client import ServerError, ServerPolicy, served_checkpoint
from policies.remote.messages import pack, unpack
from policies.rollout import rollout
from tests.reach import SPEC as REACH
from tests.reach import reach_envs
from tests.robots import ARM, HANDS
from tests.served import POISON, Remembers, seen, serving, told, until

KEY = "a key of twenty letters"


@dataclass(frozen=True)
class Counting:
    """How fast it goes depends on the episode's seed, what it sees and how often it was asked. Two steps a chunk."""

    execute: int = 2

    def init(self, instruction, seed=0):
        return (instruction, seed, 0)

    def act(self, observation, state):
        instruction, seed, asked = state
        chunk = np.zeros((3, 7), np.float32)
        chunk[:, 0] = 0.4 + 0.05 * (seed % 5) + 0.01 * asked + 0.1 * observation.state[0]
        chunk[:, 1] = len(instruction) / 100
        return chunk, (instruction, seed, asked + 1)


def test_an_episode_is_the_same_as_with_the_policy_here():
    """Catches memory, seeds or pictures that are lost on the way, robots that are mixed up, and episodes that begin
    with the memory of those before."""
    with closing(reach_envs(3)) as envs:
        here = [run.episode for run in rollout(envs, Counting(), range(7))]
        with serving(OneByOne(Counting()), REACH) as (address, server):
            policy = ServerPolicy(address, REACH)
            there = [run.episode for run in rollout(envs, policy, range(7))]
            assert 1 <= server.robots <= 4, "connections are used again"
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one.action, other.action)
        np.testing.assert_array_equal(one.state, other.state)
    assert len({tuple(episode.action[0]) for episode in here}) > 3


def act(policy: ServerPolicy, states: list, **what) -> tuple[list, list]:
    chunks, states = policy.act(Observation.stack([seen(**what)] * len(states)), states)
    return [told(chunk) for chunk in chunks], states


def test_robots_are_asked_together():
    """Catches a client that waits for one answer before it sends the next request."""
    served = Remembers()
    with serving(served, wait_s=0.3) as (address, server):
        policy = ServerPolicy(address, HANDS)
        assert policy.execute == 2
        states = [policy.init("tidy up", seed) for seed in range(4)]
        chunks, states = act(policy, states)
        assert server.robots == 4 and chunks == [(0, seed, 7) for seed in range(4)]
        assert act(policy, states)[0] == [(1, seed, 7) for seed in range(4)]
        assert served.batches == [4, 4]


def test_memory_and_lateness_are_the_servers():
    """Catches decisions that were late there and count as punctual here."""
    with serving(Remembers()) as (address, server):
        policy = ServerPolicy(address, HANDS)
        states = [policy.init("tidy up", 3)]
        for asked in range(3):
            chunks, states = act(policy, states)
            assert chunks == [(asked, 3, 7)] and states[0].late == 2 * (asked + 1)
        with pytest.raises(ValueError, match="two states of one episode"):
            act(policy, states * 2)
        del states
        again = [policy.init("tidy up", 4)]
        assert act(policy, again)[0] == [(0, 4, 7)] and server.robots == 1
        del policy, again
        gc.collect()
        until(lambda: server.robots == 0)


def test_away():
    """Catches a traceback, or a wait without end, where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"ws://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerError, match=f"no policy server answers at {address}.*agent.serve.*policy.address"):
            ServerPolicy(address, HANDS)
        taken.listen()
        with pytest.raises(ServerError, match="no policy server answers"):
            ServerPolicy(address, HANDS, timeout_s=0.2)


def test_gone():
    """Catches an error that does not say that the server has ended."""
    with serving(Remembers()) as (address, _):
        policy = ServerPolicy(address, HANDS)
        _, states = act(policy, [policy.init("tidy up")])
    with pytest.raises(ServerError, match="closed the connection"):
        act(policy, states)


def test_sent_away_between_two_episodes():
    """Catches an evaluation that ends because an idle connection was closed."""
    with serving(Remembers(), limits=Limits(idle_s=0.1)) as (address, server):
        policy = ServerPolicy(address, HANDS)
        until(lambda: server.robots == 0)
        assert act(policy, [policy.init("tidy up", 1)])[0] == [(0, 1, 7)]


def test_slow():
    """Catches a robot that waits for ever, and one that later takes an answer to an older question."""
    served = Remembers(slow_s=0.5)
    with serving(served) as (address, _):
        policy, began = ServerPolicy(address, HANDS, timeout_s=0.2), time.monotonic()
        with pytest.raises(ServerError, match="no answer within 0.2 s.*policy.timeout_s"):
            act(policy, [policy.init("tidy up", 1)])
        assert time.monotonic() - began < 5
        served.slow_s = 0.0
        until(lambda: len(served.batches) == 1)
        time.sleep(0.6)
        assert act(policy, [policy.init("tidy up", 2)])[0] == [(0, 2, 7)]


def test_what_the_server_says_is_passed_on():
    """Catches `the server failed` where it said why."""
    with serving(Remembers()) as (address, _):
        policy = ServerPolicy(address, HANDS)
        with pytest.raises(ServerError, match=f"{address} answered: the policy will not look at this"):
            act(policy, [policy.init("tidy up")], first=POISON)
        with pytest.raises(ServerError, match="never trained on 'juggle'"):
            act(policy, [policy.init("juggle")])


def test_another_robot():
    """Catches chunks that are executed by a robot that they were not meant for."""
    with serving(Remembers()) as (address, _):
        with pytest.raises(ValueError, match=f"at {address} and the environment are of different robots: cameras"):
            ServerPolicy(address, ARM)
        with pytest.raises(ValueError, match="after 2 control steps, not 4: set policy.execute=2"):
            ServerPolicy(address, HANDS, execute=4)


def test_keys_of_a_server(monkeypatch):
    """Catches a key that is not sent, or that a report would show."""
    with serving(Remembers(), api_key=KEY, about={"checkpoint": {"name": "n", "sha256": "s"}}) as (address, _):
        monkeypatch.delenv("NEXTSTATE_API_KEY", raising=False)
        with pytest.raises(ServerError, match="refuses the connection: 401 a valid API key is needed"):
            ServerPolicy(address, HANDS)
        monkeypatch.setenv("NEXTSTATE_API_KEY", KEY)
        assert act(policy := ServerPolicy(address, HANDS), [policy.init("tidy up")])[0] == [(0, 0, 7)]
        assert served_checkpoint(address, 5.0) == {"name": "n", "sha256": "s"}


@contextmanager
def somebody_elses(answer, metadata: bytes = pack({"env": "libero"})):
    """Another server of openpi's protocol, and the requests that came to it. answer: request -> what is sent."""
    came = []

    def converse(connection):
        connection.send(metadata)
        for frame in connection:
            came.append(unpack(frame))
            connection.send(answer(came[-1]))

    with serve(converse, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}", came
        finally:
            server.shutdown()
            thread.join(10)


def test_any_openpi_server():
    """Catches a client that needs what only our server says, or sends what a stranger may trip over."""
    chunk = np.full((5, 4), 0.25)
    keys = {"left": "observation/image", "right": "observation/wrist_image"}
    with somebody_elses(lambda request: pack({"actions": chunk, "state": np.zeros(6)})) as (address, came):
        with pytest.raises(ValueError, match="set policy.execute"):
            ServerPolicy(address, HANDS)
        policy = ServerPolicy(address, HANDS, execute=5, keys=keys)
        chunks, _ = policy.act(Observation.stack([seen()]), [policy.init("tidy up", 3)])
        assert served_checkpoint(address, 5.0) is None
    assert chunks.dtype == np.float32 and (chunks == 0.25).all() and chunks.shape == (1, 5, 4)
    assert set(came[0]) == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
    assert came[0]["prompt"] == "tidy up" and came[0]["observation/image"].dtype == np.uint8


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (pack({"actions": np.zeros((5, 7))}), r"`actions` \(M, 4\), got \(5, 7\)"),
        (pack({"actions": np.zeros(4)}), r"got \(4,\)"),
        (pack({"action": 1}), "got NoneType"),
        (b"\xc1", "is no policy server"),
        ("Traceback: it broke", "answered: Traceback: it broke"),
    ],
)
def test_answers_that_are_none(answer, says):
    """Catches an exception of msgpack's or numpy's where the server is to blame."""
    with somebody_elses(lambda request: answer) as (address, _):
        policy = ServerPolicy(address, HANDS, execute=5)
        with pytest.raises(ServerError, match=says):
            act(policy, [policy.init("tidy up")])


def test_no_policy_server():
    """Catches a websocket of something else that is taken for one."""
    with somebody_elses(lambda request: request, metadata=b"\xc1hello") as (address, _):
        with pytest.raises(ServerError, match="is no policy server"):
            ServerPolicy(address, HANDS)


@pytest.mark.parametrize("module", ["policies.remote.client", "policies.remote.messages", "agent.serving.server"])
@pytest.mark.parametrize("missing", ["msgpack", "websockets"])
def test_the_missing_extra_is_named(monkeypatch, module, missing):
    """Catches `No module named 'msgpack'`, which does not say what to install."""
    for name in list(sys.modules):
        if name.startswith(("policies.remote", "agent.serving")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf"need {missing}: pip install 'nextstate\[serve\]'"):
        importlib.import_module(module)
