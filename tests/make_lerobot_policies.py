"""Small untrained policies of LeRobot's for the robot `HANDS`, and what each of them does when LeRobot itself asks it.

    python make_lerobot_policies.py FOLDER

For an interpreter that has LeRobot (0.4.4 was tried). Writes FOLDER/NAME, as LeRobot's training saves a policy, and
FOLDER/NAME.npz: eight moments and the actions that a loop like that of LeRobot's evaluation takes in them.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.utils import preprocess_observation
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

STEPS, SEED = 8, 3
CAMERAS = {"left": (16, 16), "right": (24, 16)}


def features(*cameras: str) -> dict:
    found = {f"observation.images.{n}": PolicyFeature(FeatureType.VISUAL, (3, *CAMERAS[n])) for n in cameras}
    found["observation.state"] = PolicyFeature(FeatureType.STATE, (6,))
    return {"input_features": found, "output_features": {"action": PolicyFeature(FeatureType.ACTION, (4,))}}


def act(**settings) -> ACTConfig:
    return ACTConfig(
        **features(*CAMERAS), device="cpu", chunk_size=8, dim_model=32, n_heads=2, dim_feedforward=64,
        n_encoder_layers=1, n_vae_encoder_layers=1, latent_dim=8, pretrained_backbone_weights=None, **settings,
    )  # fmt: skip


def diffusion() -> DiffusionConfig:
    return DiffusionConfig(
        **features("left"), device="cpu", down_dims=(16, 32), diffusion_step_embed_dim=16, num_inference_steps=3,
        crop_shape=None, spatial_softmax_num_keypoints=4, n_groups=4, horizon=8, n_action_steps=4,
    )  # fmt: skip


def stats(config) -> dict:
    """Of a data set that never was: nothing is 0 and 1, so that normalization is seen."""
    found = {}
    for key, feature in {**config.input_features, **config.output_features}.items():
        shape = (3, 1, 1) if feature.type is FeatureType.VISUAL else feature.shape
        values = {"mean": 0.1, "std": 0.4, "min": -0.5, "max": 1.5}
        found[key] = {name: torch.full(shape, value) for name, value in values.items()}
    return found


def asked(policy, before, after, moments: dict) -> np.ndarray:
    """(STEPS, A): the loop of lerobot.scripts.lerobot_eval, its random numbers begun as our process begins them."""
    actions, looks = [], policy.config.n_obs_steps > 1 or getattr(policy.config, "temporal_ensemble_coeff", None)
    every = 1 if looks else policy.config.n_action_steps
    policy.reset()
    for step in range(STEPS):
        if step % every == 0:
            seed = hashlib.sha256(f"{SEED} {step // every}".encode()).digest()[:4]
            torch.manual_seed(int.from_bytes(seed, "little"))
        seen = {"pixels": {n: moments[n][step : step + 1] for n in CAMERAS}, "agent_pos": moments["state"][step]}
        batch = before({**preprocess_observation(seen), "task": ["tidy up"]})
        with torch.inference_mode():
            actions.append(after(policy.select_action(batch)).numpy()[0])
    return np.stack(actions)


def main() -> None:
    folder, rng = Path(sys.argv[1]), np.random.default_rng(0)
    moments = {name: rng.integers(256, size=(STEPS, *size, 3), dtype=np.uint8) for name, size in CAMERAS.items()}
    moments["state"] = rng.uniform(-0.5, 0.5, (STEPS, 6)).astype(np.float32)
    policies = {
        "act": act(n_action_steps=4), "ensemble": act(n_action_steps=1, temporal_ensemble_coeff=0.01),
        "diffusion": diffusion(),
    }  # fmt: skip
    for name, config in policies.items():
        torch.manual_seed(0)
        policy = get_policy_class(config.type)(config).eval()
        before, after = make_pre_post_processors(config, dataset_stats=stats(config))
        if name == "act":
            config.pretrained_backbone_weights = "ResNet18_Weights.IMAGENET1K_V1"  # as most have it; no net is asked
        for part in (policy, before, after):
            part.save_pretrained(folder / name)
        np.savez(folder / f"{name}.npz", action=asked(policy, before, after, moments), **moments)


if __name__ == "__main__":
    main()
