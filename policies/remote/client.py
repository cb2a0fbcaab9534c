"""A policy that is asked over the network: ours from `agent.serve`, or any server that speaks openpi's protocol."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.protocol import State
from websockets.sync.client import connect

from envs.types import Observation, Spec
from policies.remote.messages import API_KEY_VARIABLE, Keys, pack, unpack

MOST_CONTAINERS = 10_000  # of a server's message; its metadata may name many dimensions


class ServerError(OSError):
    """A policy server cannot be reached, does not answer in time or answers with an error. The message says which."""


class Connection:
    """One websocket, and what the server said of itself. ServerError where anything goes wrong."""

    def __init__(self, address: str, timeout_s: float) -> None:
        key = os.environ.get(API_KEY_VARIABLE)
        self.address, self.timeout_s, self.end = address, timeout_s, ExitStack()
        local = urlsplit(address).hostname in ("127.0.0.1", "localhost", "::1")
        proxy = {"proxy": None} if local else {}  # no proxy of the environment leads to this machine
        try:
            self.socket = self.end.enter_context(connect(
                address, compression=None, max_size=None, open_timeout=timeout_s, close_timeout=1.0,
                additional_headers={"Authorization": f"Api-Key {key}"} if key else None, **proxy,
            ))  # fmt: skip
        except InvalidStatus as error:
            status, said = error.response.status_code, (error.response.body or b"").decode(errors="replace").strip()
            raise ServerError(f"the policy server at {address} refuses the connection: {status} {said}") from error
        except (OSError, WebSocketException) as error:  # TimeoutError is an OSError
            raise ServerError(
                f"no policy server answers at {address} ({str(error) or type(error).__name__}). Start one with "
                "`python -m agent.serve`, or set policy.address"
            ) from error
        self.metadata = self.receive(time.monotonic() + timeout_s)

    def send(self, request: Mapping[str, Any]) -> None:
        try:
            self.socket.send(pack(request))
        except (OSError, WebSocketException) as error:
            raise self._lost(error) from error

    def receive(self, until: float) -> dict[str, Any]:
        """The next message. until: of `time.monotonic`."""
        try:
            answer = self.socket.recv(max(until - time.monotonic(), 0.001))
        except TimeoutError as error:
            raise ServerError(
                f"the policy server at {self.address} gave no answer within {self.timeout_s:g} s: it is too slow or "
                "stuck; policy.timeout_s allows more"
            ) from error
        except (OSError, WebSocketException) as error:
            raise self._lost(error) from error
        if isinstance(answer, str):  # as openpi's server says what went wrong
            raise ServerError(f"the policy server at {self.address} answered: {answer.strip()}")
        try:
            return unpack(answer, MOST_CONTAINERS)
        except ValueError as error:
            raise ServerError(f"what answers at {self.address} is no policy server: {error}") from error

    def _lost(self, error: Exception) -> ServerError:
        why = error.rcvd.reason if isinstance(error, ConnectionClosed) and error.rcvd else ""
        return ServerError(f"the policy server at {self.address} closed the connection ({why or error})")

    @property
    def open(self) -> bool:
        return self.socket.protocol.state is State.OPEN

    def close(self) -> None:
        self.end.close()


def served_checkpoint(address: str, timeout_s: float) -> dict[str, str] | None:
    """Name and sha256 of the checkpoint behind a server, where it tells them."""
    connection = Connection(address, timeout_s)
    connection.close()
    told = connection.metadata.get("checkpoint")
    known = isinstance(told, dict) and {"name", "sha256"} <= told.keys()
    return {name: str(told[name]) for name in ("name", "sha256")} if known else None


class Pool:
    """The connections to one server, each lent to one episode at a time."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self.address, self.timeout_s, self.over = address, timeout_s, False
        self.idle = [Connection(address, timeout_s)]

    def lend(self) -> Lease:
        """One for an episode. Whoever forgets the lease gives it back."""
        while self.idle and not self.idle[-1].open:  # the server has sent it away meanwhile
            self.idle.pop().close()
        lease = Lease(self.idle.pop() if self.idle else Connection(self.address, self.timeout_s))
        weakref.finalize(lease, self._take, lease.connection).atexit = False
        return lease

    def _take(self, connection: Connection) -> None:
        if self.over:
            connection.close()
        else:
            self.idle.append(connection)

    def close(self) -> None:
        """Those that are lent are closed when they come back."""
        self.over = True
        for connection in self.idle:
            connection.close()


@dataclass(frozen=True, eq=False)
class Lease:
    """A connection for as long as an episode lasts."""

    connection: Connection


@dataclass(frozen=True)
class ServerState:
    """Of one robot. lease: from the first decision on. late: decisions that passed the served policy's deadline. asked:
    decisions so far."""

    instruction: str
    seed: int
    lease: Lease | None = field(default=None, repr=False)
    asked: int = 0
    late: int = 0


class ServerPolicy:
    """Asks a server for each chunk. The episode's memory is there, one connection a robot, so a state can be acted from
    once only, in the order of the episode.

    Raises ServerError where the server is away, late or refuses, ValueError where it is of another robot.
    """

    batched = True

    def __init__(
        self, address: str, spec: Spec, execute: int | None = None, timeout_s: float = 30.0,
        keys: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """spec: of the robot that it is to act for. execute: None for what the server says. timeout_s: of a decision.
        keys: names that the server's requests have, see `Keys`; those it tells itself need not be named."""
        self.address, self.spec, self.timeout_s = address, spec, timeout_s
        self.pool = Pool(address, timeout_s)
        weakref.finalize(self, self.pool.close)
        said = self.pool.idle[0].metadata
        self.ours = said.get("server") == "nextstate"
        if isinstance(said.get("spec"), dict):
            Spec.from_dict(said["spec"]).require(spec, f"the policy at {address}", "the environment")
        told = said.get("keys") if self.ours else {}
        self.keys = Keys(spec, {**told, **(keys or {})})
        self.execute = self._execute(said.get("execute"), execute)

    def _execute(self, theirs: Any, wanted: int | None) -> int:
        theirs = theirs if type(theirs) is int and theirs > 0 else None
        if theirs and wanted and theirs != wanted:
            raise ValueError(
                f"the policy at {self.address} looks again after {theirs} control steps, not {wanted}: set "
                f"policy.execute={theirs}, or serve it with policy.execute={wanted}"
            )
        if not (theirs or wanted):
            raise ValueError(f"the server at {self.address} does not say how much to execute: set policy.execute")
        return theirs or wanted

    def init(self, instruction: str, seed: int = 0) -> ServerState:
        """The state of one robot. Its connection is lent at its first decision, when earlier episodes have ended."""
        return ServerState(instruction, seed)

    def act(self, observations: Observation, states: Sequence[ServerState]) -> tuple[np.ndarray, list[ServerState]]:
        """As `Policy.act`. All are sent before the first answer is awaited, so that the server can batch them."""
        observations.check(self.spec)
        leases = [state.lease or self.pool.lend() for state in states]
        if len({id(lease) for lease in leases}) < len(leases):
            raise ValueError("two states of one episode cannot act at once: its memory is the server's")
        until = time.monotonic() + self.timeout_s
        chunks, after = [], []
        try:
            for i, (state, lease) in enumerate(zip(states, leases, strict=True)):
                lease.connection.send(self._request(observations[i], state))
            for state, lease in zip(states, leases, strict=True):
                answer = lease.connection.receive(until)
                chunks.append(self._chunk(answer))
                late = answer.get("late") if type(answer.get("late")) is int else state.late
                after.append(replace(state, lease=lease, asked=state.asked + 1, late=late))
            if len({chunk.shape for chunk in chunks}) > 1:
                raise ServerError(f"the policy server at {self.address} gave chunks of different lengths")
        except ServerError:
            for lease in leases:  # answers that are still to come must not be taken for those to a later request
                lease.connection.close()
            raise
        return np.stack(chunks), after

    def _request(self, observation: Observation, state: ServerState) -> dict[str, Any]:
        begins = {"reset": True, "seed": state.seed} if self.ours and not state.asked else {}
        return {**self.keys.request(observation, state.instruction), **begins}

    def _chunk(self, answer: Mapping[str, Any]) -> np.ndarray:
        """(M, A) f32."""
        actions, wanted = answer.get("actions"), len(self.spec.action)
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.shape[1] != wanted:
            got = getattr(actions, "shape", None) or type(actions).__name__
            raise ServerError(
                f"the policy server at {self.address} must answer with `actions` (M, {wanted}), got {got}: "
                "it is of another robot, or does not speak openpi's protocol"
            )
        return actions.astype(np.float32)
