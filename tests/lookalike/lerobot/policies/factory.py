"""`get_policy_class` and `make_pre_post_processors`."""

import json
import os
import sys
from collections import deque
from pathlib import Path

import torch

POISON = 0.44  # a state at which the policy breaks


class Telling(torch.nn.Module):
    """Its first four actions are: observations that it has seen this episode / 100, the state's first number, how
    bright the pictures are together, and a random number. It plans `n_action_steps` at a time, as ACT does."""

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path, *, config=None, strict=False, **kwargs):
        assert strict, "weights that are missing must not be random ones"
        if config.type == "deadly":
            print("out of memory, or worse", file=sys.stderr, flush=True)
            os._exit(3)
        policy = cls()
        policy.config, policy.weight = config, torch.nn.Parameter(torch.ones(1))
        policy.reset()
        return policy

    def reset(self):
        self.seen, self.queue = [0], deque()

    @torch.no_grad()
    def select_action(self, batch):
        if not self.queue or self.config.n_obs_steps > 1:
            self.seen[0] += 1
        if self.queue:
            return self.queue.popleft()
        pictures = [batch[key] for key in self.config.input_features if "image" in key]
        for picture in pictures:
            assert picture.dtype == torch.float32 and picture.shape[:2] == (1, 3) and picture.max() <= 1
        state = batch.get("observation.state", torch.zeros(1, 1))
        if abs(float(state[0, 0]) * 2 - POISON) < 1e-6:
            raise ZeroDivisionError("it broke")
        bright = sum(float(p.mean()) for p in pictures) + len(batch["task"][0])
        told = torch.zeros(1, *self.config.output_features["action"].shape)
        told[0, :4] = torch.tensor([self.seen[0] / 100, float(state[0, 0]), bright, float(torch.rand(()))])
        self.queue.extend([told * self.weight] * self.config.n_action_steps)
        return self.queue.popleft()


class Pipeline:
    """One step, and what it does."""

    def __init__(self, does, rename_map):
        self.does, self.steps, self.resets = does, [type("Step", (), {"rename_map": rename_map})()], 0

    def reset(self):
        self.resets += 1

    def __call__(self, data):
        assert self.resets, "an episode begins with a reset"
        return self.does(data, self.steps[0].rename_map)


def halved(batch, rename_map):
    batch = {rename_map.get(key, key): value for key, value in batch.items()}
    return {**batch, **({"observation.state": batch["observation.state"] / 2} if "observation.state" in batch else {})}


def doubled(action, rename_map):
    return torch.cat([action[:, :1], 2 * action[:, 1:2], action[:, 2:]], 1)


def get_policy_class(name):
    return Telling


def make_pre_post_processors(policy_cfg, pretrained_path=None, *, preprocessor_overrides=None):
    (step,) = json.loads((Path(pretrained_path) / "policy_preprocessor.json").read_text())["steps"]
    assert preprocessor_overrides == {"device_processor": {"device": policy_cfg.device}}
    return Pipeline(halved, step.get("rename_map", {})), Pipeline(doubled, {})
