"""Serve a policy to robots and simulators elsewhere, in openpi's protocol.

    python -m agent.serve policy=model checkpoint=checkpoints/nextstate-s

Each connection is a robot with an episode of its own; any openpi-client can ask (policies/remote/messages.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from agent.build import EnvConfig, PolicyConfig, env_config, load_policy, make_envs, make_policy
from agent.evaluation.provenance import identity
from agent.launch.command import clear_errors, start, versions
from envs import preflight
from envs.data.settings import from_settings
from envs.types import Spec
from policies.base import Policy, batched

if TYPE_CHECKING:
    from agent.serving.server import Service


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """See configs/serve.yaml. env: None where the checkpoint says what robot it is for."""

    policy: PolicyConfig
    env: EnvConfig | None
    host: str
    port: int
    batch: int
    batch_wait_s: float
    limits: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    instruction: str | None = None
    threads: int | None = None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> ServeConfig:
        """From the command's settings, in which `split` and `checkpoint` stand beside environment and policy."""
        policy = from_settings(PolicyConfig, {**raw["policy"], "checkpoint": raw["checkpoint"]})
        return from_settings(cls, {
            **{name: value for name, value in raw.items() if name not in ("checkpoint", "split")},
            "env": env_config(raw) if raw.get("env") else None,
            "policy": policy if policy.learned else replace(policy, checkpoint=""),
        })  # fmt: skip


@contextmanager
def opened(config: ServeConfig) -> Iterator[tuple[Policy, Spec]]:
    """The policy, and the robot that it acts for: the environment's, or the checkpoint's own."""
    if config.env is None:
        yield load_policy(config.policy)
        return
    with closing(make_envs(config.env)) as envs:
        spec = envs.get_attr("robot_spec")[0]
        yield batched(make_policy(config.policy, config.env, envs)), spec


def service_of(config: ServeConfig) -> Service:
    """Where and how. ValueError for an address that needs a key and has none, RunError where there is no checkpoint."""
    from agent.serving.server import Limits, Service  # needs the extra `serve`, and says so
    from policies.remote.messages import API_KEY_VARIABLE

    about = {
        "policy": config.policy.label, "version": versions("nextstate")["nextstate"],
        "checkpoint": identity(config.policy),
    }  # fmt: skip
    return Service(
        host=config.host, port=config.port, most=config.batch, wait_s=config.batch_wait_s,
        limits=from_settings(Limits, config.limits, "limits"), keys=config.keys, instruction=config.instruction,
        about=about, api_key=os.environ.get(API_KEY_VARIABLE) or None,
    )  # fmt: skip


async def run(policy: Policy, spec: Spec, service: Service) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from agent.serving.server import PolicyServer

    server = PolicyServer(policy, spec, service)

    def ready(port: int) -> None:
        host = f"[{service.host}]" if ":" in service.host else service.host
        print(f"serving {service.about['policy']} at ws://{host}:{port}, Ctrl-C ends it", flush=True)

    serving = asyncio.ensure_future(server.run(ready))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        print("stopped", flush=True)


@hydra.main(version_base="1.3", config_path="../configs", config_name="serve")
def main(cfg: DictConfig) -> None:
    with clear_errors():
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        config = ServeConfig.of(OmegaConf.to_container(cfg, resolve=True))
        if config.env:
            preflight.require()
        if config.threads and config.policy.learned:
            import torch

            torch.set_num_threads(config.threads)
        service = service_of(config)  # what is wrong with it is said before a checkpoint is read
        with opened(config) as (policy, spec):
            asyncio.run(run(policy, spec, service))


if __name__ == "__main__":
    start(main)
