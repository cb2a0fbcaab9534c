"""The bench on a very small model, loaded from its checkpoint."""

from agent import bench
from agent.build import EnvConfig


def test_every_contestant_is_timed(untrained, tmp_path):
    """Catches a contestant that crashes, a ratio of the wrong two, or policies that cannot load what was saved."""
    env = EnvConfig("lift", "nextstate/Lift-v0", "train")
    report = bench.bench(bench.BenchConfig(env, str(untrained), 3, 1, 2, 2, 1, "cpu", str(tmp_path)))
    seconds, ratios = report["seconds"], report["ratios"]
    assert len(seconds) == 8 and all(value > 0 for value in seconds.values())
    assert ratios["token by token / parallel"] > 2  # 93 passes against one
    assert report["frames_per_second"] > 1 and "lift" in bench.table(report)
    assert "3 futures" in bench.table(report)
