"""`PreTrainedConfig`."""

import json
from pathlib import Path
from types import SimpleNamespace


class PreTrainedConfig:
    """The settings of any policy, as `config.json` has them."""

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path, **kwargs):
        raw = json.loads((Path(pretrained_name_or_path) / "config.json").read_text())
        for name in ("input_features", "output_features"):
            raw[name] = {key: SimpleNamespace(**feature) for key, feature in raw[name].items()}
        config = cls()
        vars(config).update({"n_obs_steps": 1, "use_amp": False, "device": "cpu", **raw})
        return config
