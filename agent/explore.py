"""Drive the simulator and the dream side by side, on a page in the browser.

    python -m agent.explore checkpoint=checkpoints/nextstate-s env=lift [seed=1003] [split=seen] [port=8765]

Prints one address on this machine. Both worlds begin at the same start and are given the same actions, by hand or by
the planner; any moment can be gone back to, gone on from, linked to, and its episode saved.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from agent.build import EnvConfig, PolicyConfig, env_config
from agent.exploring.studio import ExploreConfig, Studios
from agent.launch.command import RunError, clear_errors, start
from envs import preflight
from envs.data.settings import from_settings

ENVS = Path(__file__).parents[1] / "configs" / "env"
OURS = ("fold_half", "lift")


def from_hydra(raw: Mapping[str, Any]) -> ExploreConfig:
    """The settings of this command."""
    known = {f.name for f in fields(ExploreConfig)}
    policy = from_settings(PolicyConfig, {**raw["policy"], "checkpoint": raw["checkpoint"]})
    tasks, checkpoints = raw["tasks"], raw["checkpoints"]
    if tasks is None:
        tasks = OURS if raw["env"].get("name") in OURS else ()
    if checkpoints is None:
        checkpoints = [str(path.parent) for path in sorted(Path(raw["checkpoint"]).parent.glob("*/manifest.json"))]
    others = [other_env(name, raw) for name in tasks if name != raw["env"].get("name")]
    opened = [raw["open"]] if isinstance(raw["open"], str) else raw["open"]
    return from_settings(ExploreConfig, {
        **{name: value for name, value in raw.items() if name in known}, "env": env_config(raw), "policy": policy,
        "tasks": others, "checkpoints": checkpoints, "open": opened,
    })  # fmt: skip


def other_env(name: str, raw: Mapping[str, Any]) -> EnvConfig:
    """Another of configs/env, in the same split. ValueError where there is none of this name."""
    path = ENVS / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        raise ValueError(f"there is no task {name!r}: {', '.join(sorted(each.stem for each in ENVS.glob('*.yaml')))}")
    return env_config({"env": OmegaConf.to_container(OmegaConf.load(path)), "split": raw["split"]})


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. OSError where another program has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
        opened.listen()  # now: whoever follows the printed address at once waits, and is not refused
    except OSError as error:
        opened.close()
        raise OSError(f"cannot listen on {host}, port {port} ({error.strerror}): set another host or port") from error
    return opened


def run(config: ExploreConfig, host: str, port: int, key: str) -> None:
    """Serve until it is stopped."""
    try:
        import uvicorn

        from agent.exploring.server import LOOPBACK, Door, application
    except ImportError as error:
        raise RunError(f"the page needs {error.name}: pip install 'nextstate[explore]'") from error
    if host not in LOOPBACK and not key:
        key = secrets.token_urlsafe(16)
    door = Door(host, key)
    with closing(listen(host, port)) as opened:
        print(f"building {config.env.label} and loading {config.checkpoint} ...", flush=True)
        with closing(Studios(config)) as studios:
            settings = uvicorn.Config(
                application(studios, door), log_level="warning", access_log=False, ws="websockets-sansio",
                ws_max_size=2**20, ws_per_message_deflate=False, timeout_graceful_shutdown=1,
            )  # fmt: skip
            place = f"[{host}]" if ":" in host else host
            query = f"?key={key}" if key else ""
            print(f"explore at http://{place}:{opened.getsockname()[1]}/{query} (Ctrl-C ends it)", flush=True)
            uvicorn.Server(settings).run(sockets=[opened])


@hydra.main(version_base="1.3", config_path="../configs", config_name="explore")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        preflight.require()
        torch.set_num_threads(1)  # the simulator draws meanwhile
        raw = OmegaConf.to_container(cfg, resolve=True)
        run(from_hydra(raw), str(raw["host"]), int(raw["port"]), str(raw["key"] or ""))


if __name__ == "__main__":
    start(main)
