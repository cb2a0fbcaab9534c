"""The bench on a very small model, loaded from its checkpoint."""

import json
import sys

import pytest
import torch

from agent import bench
from agent.build import EnvConfig
from envs.data.files import write_json
from world_model import checkpoint

TASK = EnvConfig(id="nextstate/Lift-v0", split="train", expert="policies.scripted.lift:LiftExpert")


def config(checkpoint, out, **changes) -> bench.BenchConfig:
    settings = {
        "tasks": {"lift": TASK}, "checkpoint": str(checkpoint), "candidates": 3, "fewer": (1,), "simulated": 1,
        "robots": (1, 2), "windows": 2, "ahead": 2, "episodes": 1, "seed": 4000, "batch": 1, "window": 2, "rounds": 1,
        "threads": 1, "device": "cpu", "precision": "fp32", "generate": False, "repeats": (), "out": str(out),
    }  # fmt: skip
    return bench.BenchConfig(**{**settings, **changes})


def test_every_contestant_is_timed(untrained, tmp_path):
    """Catches a contestant that crashes, a row without a name in the ratios, or a report that JSON does not take."""
    report = bench.bench(config(untrained, tmp_path))
    counts = {part: len(report[part]) for part in bench.PARTS if part in report}
    assert counts == {"decoding": 4, "candidates": 2, "horizon": 2, "simulation": 2, "decisions": 4, "training": 4}
    rows = [row for part in counts for row in report[part].values()]
    assert all(row["seconds"] > 0 and row["per_second"] > 0 for row in rows)
    decoding = report["decoding"]
    assert all(row["peak_mib"] > 0 and row["gflop"] > 0 and row["position_cm"] > 0 for row in decoding.values())
    assert decoding[bench.REREADING]["gflop"] > 5 * decoding[bench.PARALLEL]["gflop"]
    assert report["ratios"][f"parallel / {bench.AUTOREGRESSIVE}"] > 2  # 93 passes against one
    assert "generate" not in report and "imagined frames a second" in bench.table(report)
    write_json(tmp_path / "bench.json", report)
    assert json.loads((tmp_path / "bench.json").read_text())["provenance"]["precision"] == "float32"
    bench.plot(report, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_settings_that_make_no_sense_are_refused(untrained, tmp_path):
    """Catches minutes of work before a setting fails."""
    for changes, word in (({"rounds": 0}, "rounds"), ({"robots": ()}, "robots"), ({"simulated": 9}, "simulated=9")):
        with pytest.raises(ValueError, match=word):
            config(untrained, tmp_path, **changes)


def test_without_transformers_the_rest_is_measured(untrained, tmp_path, monkeypatch, capsys):
    """Catches an optional package that the whole bench fails without."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "agent.benchmark.generate", raising=False)
    loaded = checkpoint.load(untrained, torch.device("cpu"))
    settings = config(untrained, tmp_path, generate=True)
    assert bench._generate(settings, loaded.spec, loaded.actions, torch.device("cpu"), turns=None) == {}
    assert "nextstate[hf]" in capsys.readouterr().out
