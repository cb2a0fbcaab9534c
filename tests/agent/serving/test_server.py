"""The server, asked by the openpi-client of the registry, and by those that mean no good."""

import json
import logging
import socket
import struct
import threading
import time
import urllib.request

import numpy as np
import pytest

pytest.importorskip("websockets", reason="pip install 'nextstate[serve]'")
pytest.importorskip("openpi_client", reason="pip install --no-deps openpi-client")

import websockets.exceptions
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.sync.client import connect

from agent.serving.server import Limits, PolicyServer, Service, is_loopback
from envs.types import Spec
from policies.base import OneByOne
from policies.remote.messages import pack
from tests.robots import HANDS
from tests.served import FAULT, POISON, WAIT_S, Remembers, request, serving, told, until
from tests.viewed import ROBOT as VIEWED

KEY = "a key of twenty letters"


def client(address: str, api_key: str | None = None) -> WebsocketClientPolicy:
    host, _, port = address.rpartition(":")
    return WebsocketClientPolicy(host, int(port), api_key)


def test_metadata_says_what_to_send_and_what_comes():
    """Catches a client that has to guess the robot, or how much of a chunk it is to execute."""
    with serving(Remembers(), about={"policy": "memory"}) as (address, _):
        said = client(address).get_server_metadata()
    assert Spec.from_dict(said["spec"]) == HANDS
    assert said["execute"] == 2 and said["policy"] == "memory"
    assert said["keys"] == {
        "left": "observation/left", "right": "observation/right", "state": "observation/state", "prompt": "prompt",
    }  # fmt: skip


def test_each_connection_has_its_own_episode():
    """Catches memory that robots share, or that is lost from one request to the next."""
    with serving(Remembers()) as (address, _):
        one, other = client(address), client(address)
        assert [told(one.infer(request(seed=7))) for _ in range(3)] == [(0, 7, 7), (1, 7, 7), (2, 7, 7)]
        assert told(other.infer(request(seed=8, prompt="fold"))) == (0, 8, 4)
        answer = one.infer(request())
        assert told(answer) == (3, 7, 7) and answer["late"] == 8
        assert answer["server_timing"]["infer_ms"] >= 0 and answer["server_timing"]["prev_total_ms"] > 0
        assert told(client(address).infer(request())) == (0, 0, 7), "a new connection is a new robot"


def test_episodes_begin_again():
    """Catches a reset that keeps the memory, takes the old seed, or that nobody can ask for."""
    with serving(Remembers()) as (address, _):
        robot = client(address)
        robot.infer(request(seed=7))
        assert told(robot.infer(request(reset=True, seed=3))) == (0, 3, 7)
        assert told(robot.infer(request(reset=np.True_))) == (0, 0, 7)
        robot.infer(request())
        assert robot.infer({"reset": True, "prompt": "sweep it", "seed": 5}) == {"reset": True}
        assert told(robot.infer({k: v for k, v in request().items() if k != "prompt"})) == (0, 5, 8)
        assert told(robot.infer(request(prompt="sweep it"))) == (1, 5, 8)
        assert told(robot.infer(request(prompt="another"))) == (0, 0, 7), "another instruction is another episode"


def test_names_that_a_client_has_already():
    """Catches a server that only clients written for it can ask: LIBERO's keys, nested maps, numbers as doubles, no
    prompt, keys of somebody else's."""
    keys = {"left": "observation/image", "right": "observation/wrist_image"}
    with serving(Remembers(), keys=keys, instruction="tidy up") as (address, _):
        robot, sent = client(address), request()
        sent = {"observation": {
            "image": sent["observation/left"], "wrist_image": sent["observation/right"],
            "state": sent["observation/state"].astype(float), "more": np.ones(3),
        }}  # fmt: skip
        assert told(robot.infer(sent)) == (0, 0, 7)
        sent["observation"]["state"] = sent["observation"]["state"].tolist()
        assert told(robot.infer(sent)) == (1, 0, 7)


def test_a_pose_may_be_told_or_not():
    """Catches a batch that cannot be stacked because one robot knows where its camera is and another does not."""

    class Poses(Remembers):
        def act(self, observations, states):
            chunks, states = super().act(observations, states)
            pose = observations.poses[VIEWED.cameras[0].name]
            chunks = np.zeros((len(states), 2, len(VIEWED.action)), np.float32)
            chunks[:, :, 0] = np.isfinite(pose).all(-1)[:, None]
            return chunks, states

    posed = next(camera.name for camera in VIEWED.cameras if camera.posed)
    with serving(Poses(), VIEWED) as (address, _):
        robot, pose = client(address), np.array([0, 0, 1, 1, 0, 0, 0, 0.8])
        assert robot.infer(request(VIEWED))["actions"][0, 0] == 0
        assert robot.infer(request(VIEWED, **{f"observation/{posed}.pose": pose}))["actions"][0, 0] == 1


WRONG = {
    "nothing": ({}, "it has nothing"),
    "no camera": ({"prompt": "x", "observation/state": np.zeros(6)}, "no observation/left, observation/right; it has"),
    "state of another robot": (request() | {"observation/state": np.zeros(3)}, r"must be 6 numbers, got \(3,\)"),
    "state in words": (request() | {"observation/state": "home"}, "must be 6 numbers, got str"),
    "state not finite": (request() | {"observation/state": np.full(6, np.nan)}, "not finite"),
    "state too large": (request() | {"observation/state": np.full(6, 1e300)}, "not finite"),
    "picture too large": (request() | {"observation/left": np.zeros((64, 64, 3), np.uint8)}, r"uint8 \(16, 16, 3\)"),
    "picture of floats": (request() | {"observation/left": np.zeros((16, 16, 3))}, "must be uint8"),
    "no picture": (request() | {"observation/left": "cat.png"}, "must be an array, got str"),
    "prompt of bytes": (request(prompt=b"tidy"), "must be text"),
    "prompt without end": (request(prompt="tidy" * 9999), "max_str_len"),
    "seed below": (request(seed=-1), "whole number, 0 or more"),
    "seed of text": (request(seed="7"), "whole number, 0 or more"),
    "reset of text": (request(reset="yes"), "true or false"),
    "unknown to the policy": (request(prompt="juggle"), "never trained on 'juggle'"),
    "refused by the policy": (request(first=POISON), "will not look at this"),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "says"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_request_is_one_line(sent, says):
    """Catches a traceback over the wire, and an episode that a mistake ends."""
    with serving(Remembers()) as (address, _):
        robot = client(address)
        robot.infer(request(seed=7))
        with pytest.raises(RuntimeError, match=says) as caught:
            robot.infer(sent)
        assert "Traceback" not in str(caught.value) and str(caught.value).count("\n") == 1
        assert told(robot.infer(request())) == (1, 7, 7)


def test_a_robot_that_is_told_nothing():
    """Catches a policy that is asked what to do without an instruction."""
    with serving(Remembers()) as (address, _):
        with pytest.raises(RuntimeError, match="no `prompt`: what should the robot do"):
            client(address).infer({key: value for key, value in request().items() if key != "prompt"})


def test_the_policys_own_fault_stays_at_home(caplog):
    """Catches a bug of the policy's that ends the server, or that tells strangers what is in it."""
    with serving(Remembers()) as (address, _):
        robot = client(address)
        with pytest.raises(RuntimeError, match="ZeroDivisionError") as caught:
            robot.infer(request(first=FAULT))
        assert "secret" not in str(caught.value) and "Traceback" not in str(caught.value)
        assert told(robot.infer(request())) == (0, 0, 7)
    assert "secret" in caplog.text, "whoever runs the server must be able to find it"


FRAMES = {
    "text": "hello",
    "no msgpack": b"\xc1",
    "cut off": pack(request())[:-100],
    "more behind it": pack(request()) + b"\x00",
    "a list": pack({"a": [1, 2]})[3:],
    "deep": b"\x81\xa1a" * 2000 + b"\xc0",
    "wide": b"\xdc\x04\x00" + b"\x90" * 1024,
    "a length that is not there": b"\xdf\xff\xff\xff\xff",
    "an extension": b"\x81\xa1a\xc7\x03\x05abc",
    "objects": msgpack_numpy.packb({"x": {b"__ndarray__": True, b"data": b"8" * 8, b"dtype": "|O", b"shape": [1]}}),
    "records": msgpack_numpy.packb({"x": {b"__ndarray__": True, b"data": b"8" * 8, b"dtype": "i4,i4", b"shape": [1]}}),
    "a size that overflows": msgpack_numpy.packb(
        {"x": {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [2**31 - 1] * 3 + [0]}}
    ),
    "more than its bytes": msgpack_numpy.packb(
        {"x": {b"__ndarray__": True, b"data": b"8" * 8, b"dtype": "<f4", b"shape": [1000]}}
    ),
    "a number that does not fit": msgpack_numpy.packb(
        {"x": {b"__npgeneric__": True, b"data": "0" * 99, b"dtype": "<i8"}, b"y": {b"__npgeneric__": 1}}
    ),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_a_malformed_frame_is_answered(frame):
    """Catches a crash, a hang or a traceback where what arrives was not made by a client at all."""
    with serving(Remembers()) as (address, _), connect(address, compression=None) as robot:
        robot.recv(WAIT_S)
        robot.send(frame)
        answer = robot.recv(WAIT_S)
        assert isinstance(answer, str) and "Traceback" not in answer and "\n" not in answer and len(answer) < 1000
        robot.send(pack(request()))
        assert told(msgpack_numpy.unpackb(robot.recv(WAIT_S))) == (0, 0, 7)


def test_who_sends_only_rubbish_is_sent_away():
    """Catches a connection that costs an answer for as long as it likes."""
    with serving(Remembers(), limits=Limits(errors=3)) as (address, server), connect(address) as robot:
        robot.recv(WAIT_S)
        for _ in range(3):
            robot.send(b"\xc1")
            assert "msgpack" in robot.recv(WAIT_S)
        with pytest.raises(websockets.exceptions.ConnectionClosedError, match="3 errors in a row"):
            robot.recv(WAIT_S)
        until(lambda: server.robots == 0)


def test_too_large():
    """Catches a frame that is taken into memory whatever its size."""
    with serving(Remembers(), limits=Limits(frame_mb=0.01)) as (address, _):
        robot = client(address)
        robot.infer(request())
        with pytest.raises(websockets.exceptions.ConnectionClosedError, match="1009"):
            robot.infer(request(more=np.zeros(20_000, np.uint8)))
        assert told(client(address).infer(request())) == (0, 0, 7)


def test_too_often():
    """Catches one client that asks for all there is."""
    with serving(Remembers(), limits=Limits(rate_hz=10, burst=3)) as (address, _):
        robot, began = client(address), time.monotonic()
        for _ in range(8):
            robot.infer(request())
        assert time.monotonic() - began > 0.45, "five of eight must wait for 0.1 s each"
    with serving(Remembers(), limits=Limits(rate_hz=0.01, burst=1)) as (address, _):
        robot, other = client(address), client(address)
        robot.infer(request())
        robot._ws.send(pack(request()))  # is answered in 100 s
        assert told(other.infer(request())) == (0, 0, 7)


def test_too_many():
    """Catches connections without number, and places that are not given back."""
    with serving(Remembers(), limits=Limits(clients=2)) as (address, server):
        first, second = client(address), client(address)
        until(lambda: server.robots == 2)
        with pytest.raises(websockets.exceptions.InvalidStatus, match="503"):
            client(address)
        first._ws.close()
        until(lambda: server.robots == 1)
        assert told(client(address).infer(request())) == told(second.infer(request())) == (0, 0, 7)


def test_too_late():
    """Catches a robot that waits for ever, one that is given a stale chunk, and memory of a chunk that it never got."""
    policy = Remembers()
    with serving(policy, limits=Limits(deadline_s=0.3)) as (address, _):
        robot = client(address)
        robot.infer(request(seed=7))
        policy.slow_s = 0.6
        with pytest.raises(RuntimeError, match="deadline of 0.3 s"):
            robot.infer(request())
        policy.slow_s = 0.0
        until(lambda: len(policy.batches) == 2)
        for _ in range(3):
            try:
                answer = robot.infer(request())
                break
            except RuntimeError:  # the policy is still at what came too late
                continue
        assert told(answer) == (1, 7, 7)


def test_who_says_nothing_is_sent_away():
    """Catches places that are held by robots that were switched off."""
    with serving(Remembers(), limits=Limits(idle_s=0.1, open_s=0.2)) as (address, server):
        with connect(address) as robot:
            robot.recv(WAIT_S)
            with pytest.raises(websockets.exceptions.ConnectionClosed, match="no request in 0.1 s"):
                robot.recv(WAIT_S)
        until(lambda: server.robots == 0)
        half = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), WAIT_S)
        half.sendall(b"GET / HTTP/1.1\r\n")
        half.settimeout(WAIT_S)
        while half.recv(4096):  # until the server hangs up
            pass
        half.close()


def test_keys():
    """Catches a server that anybody may ask once it listens to more than this machine."""
    for host in ("0.0.0.0", "::", "", "192.168.0.7", "robots.example"):
        assert not is_loopback(host)
        with pytest.raises(ValueError, match="needs an API key.*NEXTSTATE_API_KEY"):
            Service(host=host)
    with pytest.raises(ValueError, match="at least 16 characters"):
        Service(host="0.0.0.0", api_key="short")
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert KEY not in repr(Service(api_key=KEY))
    with serving(Remembers(), api_key=KEY) as (address, _):
        assert told(client(address, KEY).infer(request())) == (0, 0, 7)
        for wrong in (None, "another key of letters", KEY + "s"):
            with pytest.raises(websockets.exceptions.InvalidStatus, match="401"):
                client(address, wrong)
        with urllib.request.urlopen(f"{address.replace('ws', 'http')}/healthz", timeout=WAIT_S) as answer:
            assert answer.read() == b"OK\n"


def test_no_web_page_may_ask():
    """Catches a page that a browser on the same machine shows and that drives the robot through 127.0.0.1."""
    with serving(Remembers()) as (address, _):
        with pytest.raises(websockets.exceptions.InvalidStatus, match="403"):
            connect(address, origin="https://example.com").__enter__()


def test_what_cannot_be_served():
    """Catches an expert that asks for the simulator's truth at the first request."""

    class Sees(Remembers):
        privileged = True

    with pytest.raises(ValueError, match="simulator's truth"):
        PolicyServer(Sees(), HANDS, Service())
    with pytest.raises(ValueError, match="renames middle"):
        PolicyServer(Remembers(), HANDS, Service(keys={"middle": "x"}))
    with pytest.raises(ValueError, match="limits.rate_hz"):
        Limits(rate_hz=0)


class Alone:
    """A policy that was written for one robot."""

    execute = 1

    def init(self, instruction, seed=0):
        return None

    def act(self, observation, state):
        return np.full((1, len(HANDS.action)), seen_by(observation), np.float32), None


def seen_by(observation) -> float:
    return float(observation.images["left"].mean()) / 1000


def test_a_policy_for_one_robot_is_served():
    """Catches a server that only takes policies of ours, and one that takes `no memory` for `no episode`."""
    with serving(OneByOne(Alone())) as (address, _):
        robot, sent = client(address), request()
        for _ in range(2):
            assert robot.infer(sent)["actions"][0, 0] == np.float32(sent["observation/left"].mean() / 1000)


def test_sixteen_robots_and_three_that_are_none():
    """Catches a server that one client can hold up: one that reads and writes slowly, one that half opens its
    connection, one that sends rubbish, one that vanishes in the middle of a frame."""
    policy = Remembers(slow_s=0.005)
    with serving(policy, limits=Limits(rate_hz=10_000, burst=1000, errors=10_000)) as (address, server):
        port, over = int(address.rpartition(":")[2]), threading.Event()
        half = socket.create_connection(("127.0.0.1", port), WAIT_S)  # says nothing at all
        torn = client(address)
        torn._ws.socket.sendall(b"\x82\xfe\xff\xff" + b"\x00" * 100)  # a frame of 65 kB that never comes
        slow = client(address)

        def dribble() -> None:
            """One byte at a time."""
            data = pack(request())
            slow._ws.socket.sendall(b"\x82\xff" + struct.pack(">QI", len(data), 0))
            for i in range(len(data)):
                if over.wait(0.001):
                    return
                slow._ws.socket.sendall(data[i : i + 1])

        def rubbish() -> None:
            rng = np.random.default_rng(0)
            with connect(address) as robot:
                while not over.is_set():
                    robot.send(rng.bytes(int(rng.integers(1, 300))))
                    robot.recv(WAIT_S)

        said: dict[int, list] = {}

        def robot(number: int) -> None:
            mine = client(address)
            said[number] = [told(mine.infer(request(seed=number))) for _ in range(10)]

        bad = [threading.Thread(target=work, daemon=True) for work in (dribble, rubbish)]
        good = [threading.Thread(target=robot, args=(number,), daemon=True) for number in range(16)]
        for thread in (*bad, *good):
            thread.start()
        for thread in good:
            thread.join(WAIT_S)
        assert said == {number: [(i, number, 7) for i in range(10)] for number in range(16)}
        over.set()
        for thread in bad:
            thread.join(WAIT_S)
        half.close()
        torn._ws.socket.close()
        assert max(policy.batches) > 4, "robots that ask together are to be answered together"
        assert sum(policy.batches) == 160
        logging.getLogger().info(json.dumps(policy.batches))
