"""Episodes as Rerun recordings: what was seen, done, imagined and considered, on one time line, `control_step`.

An episode is a recording of its own, named by policy and seed. Its entities, t a control step:

    cameras/CAMERA, state/DIMENSION     observation t
    action/DIMENSION                    executed from t to t + 1
    success, progress                   the environment's, at t
    imagined/cameras/CAMERA, imagined/state/DIMENSION
                                        what the decision of one model step ago imagined for t
    value, uncertainty                  the model's, at the end of what was decided at t
    candidates/scores                   of all C that a search considered at t
    candidates/paths, candidates/chosen where each took the hands, and the chosen one, in metres

The last four rows need the world model to act. An episode of the dream has the first three below `dream/`, with value
and uncertainty of every t; one from the same start in the simulator has the same name, and Rerun shows both as one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.launch.command import RunError
from agent.planning.planner import Plan
from agent.planning.policies import AgentState, ModelPolicy
from envs.data.files import write_whole
from policies.rollout import Rollout, Step

try:
    import rerun
except ImportError as error:
    raise RunError("rerun=FILE.rrd needs rerun-sdk: pip install 'nextstate[rerun]'") from error

TIME = "control_step"
HEADER, END = 12, bytes(16)  # of a .rrd of this version: bytes before its first message, and its last message
Series = dict[str, list[tuple[int, Any]]]  # entity -> control steps, each with what it shows then


@dataclass
class Recorder:
    """Watches the episodes of `rollout`. It asks the model what follows from each decision, and changes none.

    policy: that acts. name: of it, for people.
    """

    policy: Any
    name: str
    found: dict[int, Series] = field(default_factory=dict)  # by robot, of the episode that it is in
    last: int = 0  # the robot that was stepped last, which is the one whose episode the loop yields

    def watch(self, step: Step) -> None:
        """One control step, as `rollout`'s `on_step`."""
        if step.index == 0:
            self.found[step.robot] = defaultdict(list)
        self.last, series = step.robot, self.found[step.robot]
        if "uncertainty" in step.info:  # the dream's own, after the step
            for name in ("value", "uncertainty"):
                series[f"dream/{name}"].append((step.index + 1, float(step.info[name])))
            return
        policy, state = getattr(self.policy, "policy", self.policy), getattr(step.state, "inner", step.state)
        acting = getattr(policy, "acting", policy)  # without its search; above, without what disturbs it
        if step.decided and isinstance(acting, ModelPolicy):
            _add_imagined(series, acting, state, step.index)
            if state.plan and state.plan.imagined:
                _add_candidates(series, state.plan, step.obs.state, acting.model.spec.positions, step.index)

    def finish(self, run: Rollout) -> bytes:
        """The recording of the episode that the loop has just yielded, as a whole .rrd."""
        episode, series = run.episode, self.found.pop(self.last)
        root = "dream/" if episode.source == "imagined" else ""
        seen = {f"cameras/{name}": frames for name, frames in episode.images.items()}
        for name, parts in (("state", episode.spec.state), ("action", episode.spec.action)):
            seen |= {f"{name}/{part.name}": getattr(episode, name)[:, i] for i, part in enumerate(parts)}
        for name, values in {**seen, "success": episode.success, "progress": episode.progress}.items():
            series[root + name] = list(enumerate(values))
        stream = rerun.RecordingStream("nextstate", recording_id=f"{self.name} {episode.seed}", send_properties=False)
        for name, rows in series.items():
            steps, values = zip(*rows, strict=True)
            path = rerun.new_entity_path(name.split("/"))
            stream.send_columns(path, [rerun.TimeColumn(TIME, sequence=steps)], _columns(values))
        return stream.binary_stream().read()


def write(path: str | Path, recordings: Sequence[bytes]) -> None:
    """One file of whole recordings, of which those of one name become one."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    messages = b"".join(recording[HEADER:].removesuffix(END) for recording in recordings)
    write_whole(path, recordings[0][:HEADER] + messages + END)


def _columns(values: Sequence[Any]) -> Any:
    """What an entity shows over time: pictures (h, w, 3) u8, paths (n, points, 3), or one or (n,) numbers."""
    values = [np.asarray(value) for value in values]
    if values[0].dtype == np.uint8:
        height, width, _ = values[0].shape
        kind = rerun.components.ImageFormat(width=width, height=height, color_model="RGB", channel_datatype="U8")
        return rerun.Image.columns(buffer=[each.tobytes() for each in values], format=[kind] * len(values))
    counts = [len(each) if each.ndim else 1 for each in values]
    if values[0].ndim == 3:
        return rerun.LineStrips3D.columns(strips=np.concatenate(values)).partition(counts)
    numbers = np.concatenate([np.atleast_1d(each) for each in values])
    return rerun.Scalars.columns(scalars=numbers.astype(np.float64)).partition(counts)


@torch.no_grad()
def _add_imagined(series: Series, acting: ModelPolicy, state: AgentState, now: int) -> None:
    """What the model imagines of a decision. state: after it."""
    model, plan, strides = acting.model, state.plan, None
    cache = model.prefill([acting.history(replace(state, done=state.done[:-1]))])
    if plan:
        chunks = torch.from_numpy(plan.future)[None, None]  # (1, 1, H, M, A)
        strides = plan.imagined[0].strides[: len(plan.future)] if plan.imagined else None
    else:
        chunks = model.propose(cache, 1, 0.0, [torch.Generator()])[:, :, None]
    future = model.imagine(cache, chunks, strides=strides)[0]  # fields (1, H, ...)
    for name in ("value", "uncertainty"):
        series[name].append((now, getattr(future, name)[0, -1].item()))
    shown = now + future.strides[0]
    for name, frames in model.decode_frames(future).items():  # (1, H, h, w, 3)
        series[f"imagined/cameras/{name}"].append((shown, frames[0, 0].cpu().numpy()))
    for part, value in zip(model.spec.state, future.state[0, 0].tolist(), strict=True):
        series[f"imagined/state/{part.name}"].append((shown, value))


def _add_candidates(
    series: Series, plan: Plan, state: np.ndarray, positions: tuple[tuple[int, int, int], ...], now: int
) -> None:
    """What a search considered. state: (P,) now, where all paths begin."""
    series["candidates/scores"].append((now, plan.scores))
    states = torch.cat([imagined.state for imagined in plan.imagined]).cpu().numpy()  # (C, H, P)
    paths = np.concatenate([np.broadcast_to(state, states[:, :1].shape), states], axis=1)
    if positions:
        hands = np.stack([paths[:, :, list(hand)] for hand in positions])  # (hands, C, 1 + H, 3)
        series["candidates/paths"].append((now, hands.reshape(-1, *hands.shape[2:])))
        series["candidates/chosen"].append((now, hands[:, plan.chosen]))
