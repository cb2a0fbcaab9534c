"""The server: one connection is one robot, with its own episode, its own limits and its own errors."""

from __future__ import annotations

import asyncio
import hmac
import http
import ipaddress
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from agent.serving.batching import Batcher, Question
from envs.types import Spec
from policies.base import Policy
from policies.remote.messages import API_KEY_VARIABLE, Keys, flat, pack, unpack

log = logging.getLogger(__name__)
QUIET = logging.getLogger(f"{__name__}.websockets")  # what strangers do to a handshake is not worth a traceback
QUIET.setLevel(logging.CRITICAL)
SHORTEST_KEY = 16  # characters
FULL = "the server has as many clients as it takes\n"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may take of the server.

    clients: connections at a time. frame_mb: megabytes of one message. rate_hz, burst: requests a second in the long
    run, and how many at once; those beyond wait. deadline_s: from a request to its answer. idle_s: without a request,
    after which a connection is closed. errors: in a row, after which it is closed too. open_s: for the handshake.
    """

    clients: int = 64
    frame_mb: float = 8.0
    rate_hz: float = 100.0
    burst: int = 20
    deadline_s: float = 10.0
    idle_s: float = 600.0
    errors: int = 10
    open_s: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"`limits.{name}` must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class Service:
    """Where and how a policy is served.

    host, port: 0 for any free port. most: robots of one policy call. wait_s: how long a request waits for others to
    come with it. keys: see `Keys`. instruction: of requests that have none. about: further metadata.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    most: int = 16
    wait_s: float = 0.002
    limits: Limits = field(default_factory=Limits)
    keys: Mapping[str, str] = field(default_factory=dict)
    instruction: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16 or self.most < 1 or self.wait_s < 0:
            raise ValueError(
                f"`port` must be 0 to 65535, `batch` at least 1 and `wait_s` 0 or more, got {self.port}, {self.most} "
                f"and {self.wait_s}"
            )
        if not is_loopback(self.host) and not self.api_key:
            raise ValueError(
                f"listening on {self.host or 'all addresses'} needs an API key, without which anybody could ask: set "
                f"{API_KEY_VARIABLE} in the environment, or host=127.0.0.1"
            )
        if self.api_key is not None and len(self.api_key) < SHORTEST_KEY:
            raise ValueError(f"{API_KEY_VARIABLE} must have at least {SHORTEST_KEY} characters")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. False for a name that could be anything."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Robot:
    """What is remembered of one connection. begun: a decision of this episode was made. state: the policy's, then."""

    instruction: str | None = None
    seed: int = 0
    begun: bool = False
    state: Any = None


class Pace:
    """Lets `burst` through at once and `rate_hz` a second in the long run."""

    def __init__(self, rate_hz: float, burst: int) -> None:
        self.rate_hz, self.burst = rate_hz, burst
        self.allowed, self.since = float(burst), time.monotonic()

    async def keep(self, connection: ServerConnection) -> None:
        """Return once one more may pass, or the connection is closed. Meanwhile nothing more is read of it."""
        now = time.monotonic()
        self.allowed, self.since = min(self.burst, self.allowed + (now - self.since) * self.rate_hz) - 1, now
        if self.allowed < 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(-self.allowed / self.rate_hz):
                    await connection.wait_closed()


class PolicyServer:
    """Serves one policy to many robots. `run` until cancelled."""

    def __init__(self, policy: Policy, spec: Spec, service: Service) -> None:
        if getattr(policy, "privileged", False):
            raise ValueError(f"policy {type(policy).__name__} reads the simulator's truth, which no robot can send")
        self.service, self.limits, self.keys = service, service.limits, Keys(spec, service.keys)
        self.batcher = Batcher(policy, spec, service.most, service.wait_s)
        self.robots = 0  # connected now
        self.metadata = pack({
            **service.about, "server": "nextstate", "spec": spec.to_dict(), "execute": policy.execute,
            "keys": self.keys.to_dict(),
        })  # fmt: skip

    async def run(self, ready: Callable[[int], None] = lambda port: None) -> None:
        """Serve until cancelled. ready(port): called once it listens. OSError where it cannot."""
        limits = self.limits
        async with asyncio.TaskGroup() as group:
            batching = group.create_task(self.batcher.run(lambda: self.robots))
            try:
                # A browser sends the origin of its page, and none may ask. Uncompressed, no frame unpacks to more.
                async with serve(
                    self._converse, self.service.host, self.service.port, origins=[None], process_request=self._admit,
                    compression=None, open_timeout=limits.open_s, close_timeout=1.0,
                    max_size=int(limits.frame_mb * 2**20), max_queue=1, logger=QUIET,
                ) as server:  # fmt: skip
                    ready(server.sockets[0].getsockname()[1])
                    await server.serve_forever()
            finally:
                batching.cancel()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """None for who may connect."""
        if request.path == "/healthz":  # as openpi's server answers it
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        key = self.service.api_key
        given = request.headers.get_all("Authorization")
        if key and not (len(given) == 1 and hmac.compare_digest(given[0].encode(), f"Api-Key {key}".encode())):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, f"a valid API key is needed ({API_KEY_VARIABLE})\n")
        if self.robots >= self.limits.clients:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, FULL)
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        """One connection, from metadata to its end."""
        if self.robots >= self.limits.clients:  # others were admitted in the same moment
            return await connection.close(CloseCode.TRY_AGAIN_LATER, FULL.strip())
        self.robots += 1
        who = "{}:{}".format(*(connection.remote_address or ("unknown", 0))[:2])
        log.info("%s connected, %d now", who, self.robots)
        why = "closed"
        try:
            await self._send(connection, self.metadata)
            why = await self._serve_robot(connection, who)
        except ConnectionClosed as closed:
            why = f"closed ({closed.rcvd or closed.sent or 'it went away'})"
        except TimeoutError:  # it does not read what it is sent
            why = "too slow to take an answer"
            connection.transport.abort()
        finally:
            self.robots -= 1
            log.info("%s left: %s; %d now", who, why, self.robots)

    async def _serve_robot(self, connection: ServerConnection, who: str) -> str:
        """Answer its requests one after the other. Returns why it was sent away."""
        limits, robot, errors, took = self.limits, Robot(), 0, None
        pace = Pace(limits.rate_hz, limits.burst)
        while errors < limits.errors:
            try:
                async with asyncio.timeout(limits.idle_s):
                    frame = await connection.recv()
            except TimeoutError:
                await connection.close(CloseCode.GOING_AWAY, f"no request in {limits.idle_s:g} s")
                return "idle"
            await pace.keep(connection)
            began = time.monotonic()
            try:
                robot, answer = await self._answer(frame, robot)
                if took is not None and "server_timing" in answer:
                    answer["server_timing"]["prev_total_ms"] = took * 1000
                reply, errors = pack(answer), 0
            except TimeoutError:
                reply, errors = f"no decision within the deadline of {limits.deadline_s:g} s", errors + 1
            except ValueError as error:
                reply, errors = str(error) or "the request could not be answered", errors + 1
            except Exception as error:  # the policy is anybody's code: its fault ends no other robot's connection
                log.error("%s: the policy failed", who, exc_info=error)
                reply, errors = f"the policy failed ({type(error).__name__}); the server's log says more", errors + 1
            if isinstance(reply, str):
                log.warning("%s: %s", who, reply)
            await self._send(connection, reply)
            took = time.monotonic() - began
        await connection.close(CloseCode.POLICY_VIOLATION, f"{errors} errors in a row")
        return f"{errors} errors in a row"

    async def _send(self, connection: ServerConnection, message: bytes | str) -> None:
        async with asyncio.timeout(self.limits.deadline_s):
            await connection.send(message)

    async def _answer(self, frame: bytes | str, robot: Robot) -> tuple[Robot, dict[str, Any]]:
        """The robot after this request, and the answer. TimeoutError after the deadline; where it or anything else is
        raised, the episode's memory stays as it was, so that the same request can be sent again."""
        request = flat(unpack(frame))
        robot = self._episode(robot, request)
        if request.get("reset") and not self.keys.holds_observation(request):
            return robot, {"reset": True}
        observation = self.keys.observation(request)
        question = Question(observation, robot.instruction, robot.seed, not robot.begun, robot.state)
        async with asyncio.timeout(self.limits.deadline_s):
            decision = await self.batcher.ask(question)
        return replace(robot, begun=True, state=decision.state), {
            "actions": decision.chunk, "late": int(getattr(decision.state, "late", 0)),
            "server_timing": {"infer_ms": decision.seconds * 1000, "batch": decision.batch},
        }  # fmt: skip

    def _episode(self, robot: Robot, request: Mapping[str, Any]) -> Robot:
        """The robot, at the start of a new episode where the request asks for one or has another instruction."""
        reset, seed = request.get("reset", False), request.get("seed")
        prompt = request.get(self.keys.prompt)
        if not isinstance(reset, bool | np.bool_):
            raise ValueError(f"`reset` must be true or false, got {type(reset).__name__}")
        whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
        if seed is not None and not (whole and 0 <= seed < 2**63):
            raise ValueError("`seed` must be a whole number, 0 or more")
        if not isinstance(prompt, str | None):
            raise ValueError(f"`{self.keys.prompt}` must be text, got {type(prompt).__name__}")
        instruction = robot.instruction or self.service.instruction if prompt is None else prompt
        if instruction is None:
            raise ValueError(f"the request has no `{self.keys.prompt}`: what should the robot do?")
        if reset or instruction != robot.instruction:
            return Robot(instruction, int(seed or 0))
        return robot if robot.begun or seed is None else replace(robot, seed=int(seed))
