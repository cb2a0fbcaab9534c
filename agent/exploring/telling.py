"""What a page is told: messages made of moments, decisions and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.exploring.messages import Head, Picture
from agent.exploring.records import titles
from agent.exploring.timeline import Moment, Thought, Timeline, drift_cm
from agent.planning.planner import Plan
from agent.viz import film
from envs.data.camera import project
from envs.types import Spec

if TYPE_CHECKING:
    from agent.exploring.studio import Studio

Told = tuple[Head, list[Picture]]


def hello(studio: Studio, session: str, resumed: bool, choices: Mapping[str, Sequence[str]]) -> Head:
    """What the page has to know of the robot and the model."""
    config, spec, real = studio.config, studio.spec, studio.real
    return {
        "tell": "hello",
        "session": session,
        "resumed": resumed,
        "env": config.env.label,
        "checkpoint": studio.origin.checkpoint[:12],
        "controls": [vars(control) for control in studio.controls],
        "rest": spec.rest.tolist(),
        "grippers": [[i, spec.action[i].low, spec.action[i].high] for i in spec.grippers],
        "cameras": [camera.name for camera in spec.cameras],
        "hz": spec.control_hz,
        "look": studio.dream.look,
        "speed": config.speed,
        "unsure": config.unsure,
        "limit": real.env.max_steps,
        "seed": config.seed,
        "split": config.env.split,
        "splits": studio.splits,
        "known": studio.known,
        "records": titles(studio.records),
        "looks": studio.has_looks,
        "choices": dict(choices),
        "chosen": {"task": config.env.label, "checkpoint": Path(config.checkpoint).name},
        "policies": list(studio.mind.policies)[::-1],  # the planner first
        "criterion": real.env.criterion,
    }


def moment(
    timeline: Timeline, spec: Spec, at: Moment, picture: np.ndarray | None, took: Mapping[str, float] | None = None
) -> Told:  # fmt: skip
    """Everything about a moment. picture: the simulator's for people, None where it was not drawn. took: seconds of a
    control step of the simulator and, where it looked, of a model step of the dream, as means of those that led here
    together."""
    info, observation = at.real.info, timeline.observations.get(at.id)
    head = {
        "tell": "moment", "id": at.id, "parent": at.parent, "step": at.step, "by": at.by, "fresh": at.fresh,
        "action": None if at.action is None else at.action.tolist(),
        "real": {"success": bool(info["success"]), "subtask": str(info["subtask"])},
        "dream": thought(at.dreamt), "seen": at.seen and thought(at.seen),
        "points": points(timeline, spec, at), "drift": {}, "took": took,
    }  # fmt: skip
    pictures = [] if picture is None else [main(spec, picture)]
    if observation is not None:
        pictures += small("real", {c.name: observation.images[c.name] for c in spec.cameras[1:]})
    if at.fresh:
        if observation is not None:
            position = spec.positions[0] if spec.positions else None
            head["drift"] = drift_cm(at.real, observation.state, at, position)
        pictures += small("dream", {c.name: at.dream.shown[c.name] for c in spec.cameras})
    return head, pictures


def seen(timeline: Timeline, spec: Spec, at: Moment) -> Head:
    """What the model believes of the simulator's picture at a moment that was told before."""
    return {"tell": "seen", "id": at.id, "seen": thought(at.seen), "points": points(timeline, spec, at)}


def main(spec: Spec, picture: np.ndarray) -> Picture:
    """The simulator's for people, from where the first camera is."""
    return Picture({"world": "real", "camera": spec.cameras[0].name}, picture)


def small(world: str, images: Mapping[str, np.ndarray]) -> list[Picture]:
    """Pictures of few pixels, as the robot sees them."""
    return [Picture({"world": world, "camera": name}, image, lossless=True) for name, image in images.items()]


def thought(told: Thought) -> dict[str, Any]:
    """What is believed of one world."""
    return {
        "value": told.value, "success": told.success, "held": told.held,
        **({} if told.uncertainty is None else {"uncertainty": told.uncertainty}),
    }  # fmt: skip


def points(timeline: Timeline, spec: Spec, at: Moment) -> dict[str, list[list[float]]]:
    """Where the first camera sees the keypoints, as shares of its width and height: those that there `are`, those that
    are believed of the simulator's picture (`seen`), and those of the dream (`dream`)."""
    scene, camera = timeline[0].real.scene, spec.cameras[0]
    pose = timeline.observations[0].poses.get(camera.name)
    if scene is None or pose is None or not np.isfinite(pose).all():
        return {}
    used = np.isfinite(scene.keypoints).all(1)
    found = {"are": at.real.scene.keypoints, "dream": at.dreamt.keypoints}
    if at.seen is not None:
        found["seen"] = at.seen.keypoints
    size = np.array([camera.height, camera.width])
    places = {
        name: (project(pose, there[used], *size) + 0.5) / size
        for name, there in found.items() if len(there) == len(used)
    }  # fmt: skip
    return {name: place[np.isfinite(place).all(1), ::-1].round(4).tolist() for name, place in places.items()}


def best(plan: Plan, count: int) -> list[int]:
    """Rows of so many candidates, best first, and among them the chosen one and the model's own."""
    rows, always = [int(row) for row in np.argsort(-plan.scores, kind="stable")], {plan.chosen, 0}
    others = [row for row in rows if row not in always][: max(count - len(always), 0)]
    return [row for row in rows if row in always or row in others]


def plan(decision: Plan, rows: Sequence[int], films: Sequence[np.ndarray], at: int, steps: int) -> Told:
    """Some candidates of a decision at a moment. films: (frames, h, w, 3) u8 of each, or none. steps: control steps
    that each lasts."""
    listed = [
        {"score": round(float(decision.scores[row]), 4), "chosen": row == decision.chosen, "own": row == 0}
        for row in rows
    ]  # fmt: skip
    pictures = [
        Picture({"candidate": i, "frame": k}, picture, lossless=True)
        for i, each in enumerate(films) for k, picture in enumerate(each)
    ]  # fmt: skip
    head = {"tell": "plan", "at": at, "of": len(decision.scores), "candidates": listed, "steps": steps}
    return head, pictures


def frame(timeline: Timeline, spec: Spec, at: Moment, picture: np.ndarray) -> np.ndarray:
    """Of a film of both worlds. picture: the simulator's for people."""
    return film.draw(film.Moment(
        picture, at.dream.shown[spec.cameras[0].name], timeline.instruction, str(at.real.info["subtask"]), at.step,
        at.step / spec.control_hz, success=bool(at.real.info["success"]), imagined_label="the dream",
    ))  # fmt: skip


def unknown(instruction: str, known: Sequence[str]) -> str:
    """The warning for an instruction that the model was never trained on."""
    return (
        f"The model was never trained on “{instruction}”; it may do anything. "
        f"It knows: {', '.join(f'“{each}”' for each in known)}."
    )
