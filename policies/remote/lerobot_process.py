"""LeRobot's end of `policy=lerobot`: a pretrained policy, served in openpi's protocol to whoever started this.

    python lerobot_process.py FOLDER DEVICE EXECUTE     auto for LeRobot's own device, 0 for the policy's own `execute`

It runs in LeRobot's environment, where this project is not installed: beside LeRobot and what that brings it needs
websockets and msgpack, and nothing of the files around it. It listens on 127.0.0.1 at a free port, says on its standard
output in one line of JSON which, or what is wrong, and ends when its standard input does: together with who started
it, however that ended.

Each connection is a robot with a policy of its own. LeRobot's policies remember what they saw and what they mean to do
next, so robots that shared one would carry out each other's plans; the copies share the weights. Requests name pictures
(h, w, 3) u8 and numbers as LeRobot does (`observation.images.NAME`, `observation.state`, `task`).
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

LARGEST = 64 * 2**20  # bytes of a request
LONGEST = 500  # characters of an error
CONFIG, PREPROCESSOR = "config.json", "policy_preprocessor.json"


class Unusable(ValueError):
    """The folder or a setting is wrong; the message says what."""


class Robot:
    """A copy of the policy and its processors for one robot, and where it is in its episode."""

    def __init__(self, policy: Any, before: Any, after: Any, execute: int) -> None:
        weights = {id(tensor): tensor for tensor in chain(policy.parameters(), policy.buffers())}
        self.policy, self.before, self.after = copy.deepcopy((policy, before, after), weights)
        self.execute, self.task, self.seed, self.asked = execute, None, 0, 0

    def act(self, request: Mapping[str, Any]) -> Any:
        """The next `execute` actions (execute, A) f32, in the units of the data that the policy was trained on."""
        import torch

        task = str(request.get("task", ""))
        if request.get("reset") or task != self.task:
            for part in (self.policy, self.before, self.after):
                part.reset()
            self.task, self.seed, self.asked = task, int(request.get("seed", 0)), 0
        torch.manual_seed(drawn_from(self.seed, self.asked))  # not what the robots beside it have drawn meanwhile
        self.asked += 1
        batch = {key: tensor(request, key) for key in inputs_of(self.policy.config, self.before)}
        config = self.policy.config
        mixed = torch.autocast(torch.device(config.device).type) if getattr(config, "use_amp", False) else nullcontext()
        with torch.inference_mode(), mixed:
            batch = self.before({**batch, "task": [task]})
            # The first call plans, and those after it go on with the plan, as in LeRobot's own evaluation.
            actions = [self.after(self.policy.select_action(dict(batch))) for _ in range(self.execute)]
        return torch.cat(actions).float().cpu().numpy()


def drawn_from(seed: int, asked: int) -> int:
    """What the random numbers of an episode's decision begin with."""
    return int.from_bytes(hashlib.sha256(f"{seed} {asked}".encode()).digest()[:4], "little")


def tensor(request: Mapping[str, Any], key: str) -> Any:
    """A batch of one, as LeRobot makes it of an environment's: pictures (1, 3, h, w) in [0, 1], numbers (1, n)."""
    import torch

    if key not in request:
        raise ValueError(f"the request has no `{key}`")
    value = torch.from_numpy(request[key].copy())
    return value.permute(2, 0, 1)[None].float() / 255 if value.ndim == 3 else value[None].float()


# ------------------------------------------------------------------------------------------------------- the policy


def inputs_of(config: Any, before: Any) -> dict[str, tuple[int, ...]]:
    """What the policy takes, by the names that observations have before its preprocessor renames them."""
    inputs = {key: tuple(feature.shape) for key, feature in config.input_features.items()}
    for step in before.steps:
        for theirs, its in getattr(step, "rename_map", {}).items():
            if its in inputs:
                inputs[theirs] = inputs.pop(its)
    return inputs


def load(folder: Path, device: str, execute: int) -> tuple[Any, Any, Any, int]:
    """The policy, its pre- and its postprocessor, and for how many control steps it acts before it looks again."""
    for name in (CONFIG, PREPROCESSOR):
        if not (folder / name).is_file():
            raise Unusable(
                f"{folder} holds no {name}: name the folder of a LeRobot policy with its processors, which its "
                "training writes as checkpoints/last/pretrained_model"
            )
    import torch
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors  # which registers the policies

    config = PreTrainedConfig.from_pretrained(folder)
    if device != "auto":
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise Unusable(f"policy.device={device}, and {sys.executable} finds no such device")
        config.device = device
    if getattr(config, "use_peft", False):
        raise Unusable(f"{folder} holds an adapter (PEFT) and no whole policy: merge it into the policy first")
    if hasattr(config, "pretrained_backbone_weights"):
        config.pretrained_backbone_weights = None  # would be downloaded, and then replaced by those of the folder
    execute = steps_before_it_looks(config, execute)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
    steps = json.loads((folder / PREPROCESSOR).read_text())["steps"]
    moves = any(step.get("registry_name") == "device_processor" for step in steps)
    before, after = make_pre_post_processors(  # saved with the device of the training
        config, str(folder),
        preprocessor_overrides={"device_processor": {"device": str(config.device)}} if moves else {},
    )  # fmt: skip
    return policy.eval(), before, after, execute


def steps_before_it_looks(config: Any, wanted: int) -> int:
    """wanted: 0 for the policy's own. Raise Unusable for what it cannot do."""
    trained = getattr(config, "n_action_steps", 1)
    if config.n_obs_steps > 1 or getattr(config, "temporal_ensemble_coeff", None) is not None:
        if wanted > 1:
            raise Unusable(
                f"this {config.type} policy has to see every control step, whether it plans anew or not: leave "
                f"policy.execute at null, it plans every {trained}"
            )
        return 1
    most = getattr(config, "chunk_size", trained)
    if wanted > most:
        raise Unusable(f"this {config.type} policy plans {most} control steps: policy.execute={wanted} is more")
    if wanted:
        config.n_action_steps = wanted
    return wanted or trained


# ------------------------------------------------------------------------------------------------------ the server


def packed(value: Any) -> Any:
    """An array, as openpi-client packs it."""
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def unpacked(value: dict[Any, Any]) -> Any:
    """The array that a map stands for, or the map."""
    import numpy as np

    if b"__ndarray__" not in value:
        return value
    return np.ndarray(tuple(value[b"shape"]), np.dtype(value[b"dtype"]), value[b"data"])


def serve_policy(policy: Any, before: Any, after: Any, execute: int, say: Any) -> None:
    """Until the process ends. say: what is called with what the starter has to know."""
    import msgpack
    from websockets.sync.server import serve

    one_at_a_time = threading.Lock()  # torch's random numbers are everybody's
    welcome = msgpack.packb({"server": "nextstate", "execute": execute, "keys": {}})

    def converse(connection: Any) -> None:
        with one_at_a_time:
            robot = Robot(policy, before, after, execute)
        connection.send(welcome)
        for frame in connection:
            began = time.monotonic()
            try:
                with one_at_a_time:
                    actions = robot.act(msgpack.unpackb(frame, object_hook=unpacked))
                timing = {"infer_ms": (time.monotonic() - began) * 1000}
                reply = msgpack.packb({"actions": actions, "server_timing": timing}, default=packed)
            except Exception as error:  # a policy is anybody's code; its client is told, and decides
                traceback.print_exc()
                reply = one_line(error)
            connection.send(reply)

    # A browser sends the origin of its page, and none may ask.
    with serve(converse, "127.0.0.1", 0, compression=None, max_size=LARGEST, origins=[None]) as server:
        config = policy.config
        say({
            "port": server.socket.getsockname()[1], "policy": config.type, "inputs": inputs_of(config, before),
            "actions": config.output_features["action"].shape[0],
            # those that bring pictures to one size themselves
            "resizes": any(getattr(config, name, None) for name in ("resize_imgs_with_padding", "image_resolution")),
        })  # fmt: skip
        server.serve_forever()


def one_line(error: BaseException) -> str:
    """What an error says."""
    said = " ".join(str(error).split())[:LONGEST]
    return said if isinstance(error, Unusable) else f"{type(error).__name__}: {said}"


def end_with_the_starter() -> None:
    """However it ends, it closes what it has of our standard input."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    folder, device, execute = sys.argv[1:]
    threading.Thread(target=end_with_the_starter, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the starter too, which knows what to do
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what LeRobot prints is not for the starter

    def say(message: Mapping[str, Any]) -> None:
        told.write(json.dumps(message) + "\n")
        told.flush()

    try:
        import msgpack  # noqa: F401
        import websockets.sync.server  # noqa: F401

        loaded = load(Path(folder), device, int(execute))
    except ImportError as error:
        traceback.print_exc()
        say({"error": f"{sys.executable} cannot import LeRobot with websockets and msgpack ({one_line(error)}): "
                      f"{sys.executable} -m pip install lerobot websockets msgpack"})  # fmt: skip
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        say({"error": one_line(error)})
        sys.exit(1)
    serve_policy(*loaded, say)


if __name__ == "__main__":
    sys.path[:] = sys.path[1:]  # what lies beside this file belongs to another environment
    main()
