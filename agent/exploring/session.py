"""One viewer: what he asks for, done in both worlds, and told to his page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from agent.exploring import messages, telling
from agent.exploring.link import Link
from agent.exploring.messages import Head, Picture, pack
from agent.exploring.studio import Studio
from agent.exploring.timeline import Moment, Timeline
from agent.exploring.worlds import FILM_PACE, Decision
from agent.planning.planner import Plan
from envs.sim.splits import refuse_recording
from world_model.imagined_env import Start

Send = Callable[[bytes], Awaitable[None]]
LARGEST_SEED = 2**31 - 1
SAME = 1e-3  # of the state, in the robot's units: what the same actions may differ by on another machine


class Abandoned(Exception):
    """The viewer told to stop, and what was being made is not wanted."""


@dataclass(frozen=True)
class Considered:
    """The candidates of a decision that a page shows. at: the moment of the decision. actions: (T, A) f32 each."""

    at: int
    actions: list[np.ndarray]


class Session:
    """One viewer's time line. Commands are handled one after the other; `stop` ends a long one early.

    send: to his page; another one when he comes back by another connection. name: by which his page comes back.
    choices: the tasks and checkpoints that he could have instead.
    """

    def __init__(
        self, studio: Studio, send: Send, name: str = "", choices: Mapping[str, Sequence[str]] = MappingProxyType({})
    ) -> None:
        self.studio, self.send, self.name, self.choices = studio, send, name, dict(choices)
        self.timeline: Timeline | None = None
        self.stops = 0  # how often it was told to stop
        self._since = 0  # `stops` when the command under way was given
        self._considered = Considered(-1, [])  # what the page shows of the planner's last decision
        self._commands = {
            "start": self._start, "act": self._act, "let": self._let, "play": self._play, "look": self._look,
            "link": self._link, "restore": self._restore, "open": self._open, "save": self._save, "film": self._film,
        }  # fmt: skip

    def stop(self) -> None:
        """End what was asked for so far: what is under way ends after its present step."""
        self.stops += 1

    @property
    def _stopped(self) -> bool:
        return self.stops > self._since

    async def handle(self, message: Head, since: int) -> None:
        """Carry out a command. since: `stops` when it was given; it may have been stopped while it waited. ValueError,
        and what else a user can cause, where it cannot be carried out."""
        command = self._commands.get(message["do"])
        if command is None:
            raise ValueError(f"nothing is known of {message['do'][:40]!r}: {', '.join(self._commands)}")
        async with self.studio.turn:
            self._since = since
            await command(message)

    async def greet(self) -> None:
        """What the page has to know of the robot and the model."""
        await self._tell(telling.hello(self.studio, self.name, self.timeline is not None, self.choices))

    # commands

    async def _start(self, message: Head) -> None:
        seed = messages.whole(message, "seed", 0, LARGEST_SEED)
        instruction = messages.words(message, "instruction", messages.MAX_TEXT, default="")
        look = messages.whole({"scene_look": 0, **message}, "scene_look", 0, LARGEST_SEED)
        await self._begin(messages.words(message, "split", 40), seed, instruction.strip(), look)

    async def _begin(self, split: str, seed: int, instruction: str, scene_look: int = 0) -> None:
        """Both worlds at the start of an episode. An empty instruction is the task's own."""
        studio = self.studio
        if scene_look and not studio.real.has_looks:
            raise ValueError(f"{studio.config.env.label} has one look only, 0")
        timeline = Timeline(split, seed, instruction, scene_look)
        real, observation, picture = await studio.simulate(studio.real.begin, timeline)
        timeline.instruction = instruction = instruction or str(real.info["instruction"])
        start = Start(observation, instruction, studio.real.env.env_id, split, seed)
        dream = await studio.think(studio.dream.begin, start)
        self.timeline, self._considered = timeline, Considered(-1, [])
        moment = timeline.start(real, dream)
        timeline.observations[0] = observation
        moment = timeline.tell(0, await studio.think(studio.mind.read, timeline, 0))
        await self._tell({
            "tell": "started", "seed": seed, "split": split, "instruction": instruction, "scene_look": scene_look,
            "warning": None if instruction in studio.known else telling.unknown(instruction, studio.known),
        })  # fmt: skip
        await self._show(moment, picture)

    async def _act(self, message: Head) -> None:
        timeline = self._require()
        at = messages.whole(message, "at", 0, len(timeline.moments) - 1)
        await self._step(at, messages.actions(message, self.studio.spec), "human")

    async def _let(self, message: Head) -> None:
        """One decision of a policy, carried out."""
        timeline, studio = self._require(), self.studio
        at, who = messages.whole(message, "at", 0, len(timeline.moments) - 1), messages.words(message, "who", 20)
        if who not in studio.mind.policies:
            raise ValueError(f"there is no policy {who!r} here: {', '.join(studio.mind.policies)}")
        await self._observe(studio.mind.needs(who, timeline, at))
        decision: Decision = await studio.think(studio.mind.decide, who, timeline, at)
        if decision.plan is not None and message.get("candidates") is True:
            await self._show_plan(at, decision.plan)
        if self._stopped:
            return
        await self._step(at, decision.actions, who, decision.plan)

    async def _play(self, message: Head) -> None:
        """Carry out a candidate that the page shows, in both worlds, from the moment at which it was considered."""
        timeline, considered = self._require(), self._considered
        at = messages.whole(message, "at", 0, len(timeline.moments) - 1)
        if at != considered.at:
            raise ValueError("what was considered at that moment is forgotten: let the planner act from there again")
        candidate = considered.actions[messages.whole(message, "candidate", 0, len(considered.actions) - 1)]
        timeline.require_room(len(candidate))
        done = 0
        while done < len(candidate) and not self._stopped:
            part = candidate[done : done + FILM_PACE]
            await self._step(at, list(part), "candidate")
            done, at = done + len(part), len(timeline.moments) - 1

    async def _look(self, message: Head) -> None:
        """The picture of a moment that was passed without drawing it."""
        timeline = self._require()
        at = messages.whole(message, "at", 0, len(timeline.moments) - 1)
        picture = await self.studio.simulate(self.studio.real.picture, timeline, at)
        await self._tell({"tell": "picture", "id": at}, [telling.main(self.studio.spec, picture)])

    async def _link(self, message: Head) -> None:
        timeline = self._require()
        at = messages.whole(message, "at", 0, len(timeline.moments) - 1)
        link = Link(
            self.studio.origin, timeline.split, timeline.seed, timeline.instruction, timeline.actions(at),
            timeline.scene_look,
        )  # fmt: skip
        await self._tell({"tell": "link", "link": link.to_text()})

    async def _restore(self, message: Head) -> None:
        """Go the way of a link again."""
        link = Link.from_text(messages.words(message, "link", messages.MAX_MESSAGE))
        link.require(self.studio.origin)
        spec, steps = self.studio.spec, len(link.actions)
        numbers = (link.seed, link.scene_look)
        if not all(0 <= n <= LARGEST_SEED for n in numbers) or len(link.instruction) > messages.MAX_TEXT:
            raise ValueError("this link cannot be followed: its seed, look or instruction is none")
        if steps and link.actions.shape[1] != len(spec.action):
            raise ValueError(f"this link cannot be followed: its actions are not {len(spec.action)} numbers each")
        await self._begin(link.split, link.seed, link.instruction, link.scene_look)
        await self._follow(link.actions, "link")

    async def _open(self, message: Head) -> None:
        """Go the way of a recorded episode, or only to where it began."""
        studio = self.studio
        record = studio.records[messages.whole(message, "record", 0, len(studio.records) - 1)]
        episode = await studio.simulate(record.read)
        if episode is None:
            await self._begin(record.split, record.seed, "")
            return
        studio.robot.require(episode.spec, "the environment", f"the episode {record.name}")
        await self._begin(episode.split, episode.seed, episode.instruction)
        await self._follow(episode.action, "recorded")
        end = len(self.timeline.moments) - 1
        await self._observe([end])
        apart = np.abs(self.timeline.observations[end].state - episode.state[end])
        if apart.max() > SAME:
            names = [part.name for part in studio.robot.state]
            raise ValueError(
                f"the simulator went another way than was recorded: {names[apart.argmax()]} ends {apart.max():.3g} "
                "elsewhere. The task has changed since, or its settings are others"
            )

    async def _save(self, message: Head) -> None:
        timeline, studio = self._require(), self.studio
        at = messages.whole(message, "at", 1, len(timeline.moments) - 1)
        refuse_recording(timeline.split)
        await self._observe([moment.id for moment in timeline.path(at)])
        episode = await studio.simulate(studio.real.episode, timeline, at, message.get("demonstration") is True)
        name = await studio.simulate(studio.keep, episode)
        await self._tell({"tell": "saved", "name": name, "folder": studio.config.out, "steps": len(episode)})

    async def _film(self, message: Head) -> None:
        """Both worlds side by side on the way to a moment, as a film in the folder of the episodes."""
        timeline, studio = self._require(), self.studio
        at = messages.whole(message, "at", 1, len(timeline.moments) - 1)
        path = timeline.path(at)
        shown, hz = path[::FILM_PACE], studio.spec.control_hz
        with suppress(Abandoned), studio.film(timeline.split, timeline.seed, round(hz / FILM_PACE)) as (name, film):
            for done, moment in enumerate(shown):
                if self._stopped:
                    raise Abandoned
                picture = await studio.simulate(studio.real.picture, timeline, moment.id)
                await studio.think(film.add, telling.frame(timeline, studio.spec, moment, picture))
                await self._tell({"tell": "progress", "what": "film", "done": done + 1, "of": len(shown)})
        if not self._stopped:
            await self._tell({"tell": "filmed", "name": name, "folder": studio.config.out, "steps": len(path) - 1})

    # what they have in common

    def _require(self) -> Timeline:
        if self.timeline is None:
            raise ValueError("there is no episode yet: start one first")
        return self.timeline

    async def _observe(self, moments: Sequence[int]) -> None:
        """What the robot sees at these moments, drawn where nobody had asked for it."""
        found = await self.studio.simulate(self.studio.real.observe, self.timeline, moments)
        self.timeline.observations.update(found)

    async def _follow(self, actions: np.ndarray, by: str) -> None:
        """Go on from the start by actions (T, A) that are known already, until told to stop."""
        self.timeline.require_room(len(actions))
        done, studio = 0, self.studio
        while done < len(actions) and not self._stopped:
            part = np.clip(actions[done : done + studio.dream.look], studio.spec.action_low, studio.spec.action_high)
            await self._step(done, list(part), by)
            done += len(part)
            await self._tell({"tell": "progress", "what": by, "done": done, "of": len(actions)})

    async def _step(self, at: int, actions: list[np.ndarray], by: str, plan: Plan | None = None) -> None:
        """Both worlds go on from a moment, each in its thread, and the page is told."""
        timeline, studio = self.timeline, self.studio
        timeline.require_room(len(actions))
        parent = timeline[at]
        pending = len(parent.dream.dream.pending)
        looks = [i for i in range(len(actions)) if (pending + i + 1) % studio.dream.look == 0]
        (stepped, real_s), (dreams, dream_s) = await both(
            timed(studio.simulate(studio.real.step, timeline, at, actions, looks)),
            timed(studio.think(studio.dream.step, parent.dream, actions)),
        )
        took = {"real": real_s / len(actions), **({"dream": dream_s / len(looks)} if looks else {})}
        for i, (action, real, dream) in enumerate(zip(actions, stepped.reals, dreams, strict=True)):
            moment = timeline.add(at, action, by, real, dream)
            at = moment.id
            if i in stepped.observations:
                timeline.observations[at] = stepped.observations[i]
            last = i == len(actions) - 1
            moment = timeline.tell(at, plan=without_pictures(plan) if last and plan is not None else None)
            await self._show(moment, stepped.picture if last else None, took if last else None)
        # What is thought of it comes after the pictures, which a person waits for.
        for moment in timeline.path(at)[-len(actions) :]:
            if moment.fresh:
                moment = timeline.tell(moment.id, await studio.think(studio.mind.read, timeline, moment.id))
                await self._tell(telling.seen(timeline, studio.spec, moment))

    # what the page is told

    async def _tell(self, head: Head, pictures: Sequence[Picture] = ()) -> None:
        await self.send(pack(head, pictures))

    async def _show(
        self, moment: Moment, picture: np.ndarray | None, took: Mapping[str, float] | None = None
    ) -> None:  # fmt: skip
        """Everything about a moment; see `telling.moment`."""
        await self._tell(*telling.moment(self.timeline, self.studio.spec, moment, picture, took))

    async def _show_plan(self, at: int, plan: Plan) -> None:
        """The best candidates of a decision, each of which can then be played."""
        if not plan.imagined:  # the deadline passed before anything was scored
            return
        rows = telling.best(plan, self.studio.config.candidates)
        films = await self.studio.think(self.studio.mind.films, self.timeline, at, plan, rows)
        stride = plan.imagined[0].strides[0]  # control steps of each chunk
        self._considered = Considered(at, [np.concatenate(plan.actions[row, :, :stride]) for row in rows])
        await self._tell(*telling.plan(plan, rows, films, at, len(self._considered.actions[0])))


async def timed(work: Awaitable[Any]) -> tuple[Any, float]:
    """What it is worth, and the seconds until then."""
    start = time.perf_counter()
    return await work, time.perf_counter() - start


async def both(first: Awaitable[Any], second: Awaitable[Any]) -> tuple[Any, Any]:
    """Wait for both also where one fails: nothing may still be under way in a world that the next command uses."""
    one, other = await asyncio.gather(first, second, return_exceptions=True)
    for result in (one, other):
        if isinstance(result, BaseException):
            raise result
    return one, other


def without_pictures(plan: Plan) -> Plan:
    """What the next search starts from; what was imagined for it takes megabytes."""
    return replace(plan, imagined=())
