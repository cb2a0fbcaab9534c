"""The baseline that draws with `generate` of `transformers`."""

import pytest

pytest.importorskip("transformers", reason="needs the optional package `transformers`")

from agent.bench_generate import bench_generate
from world_model.transformer import TransformerConfig


def test_generate_draws_what_is_imagined_id_by_id():
    """Catches a baseline that does other work than ours: a wrong prefix, a cache that is shared wrongly between rows
    or grows from call to call, an id that is not legal where it stands."""
    tiny = TransformerConfig(width=48, num_layers=2, num_heads=4, num_kv_heads=2, hidden=96)
    report = bench_generate(candidates=3, repeats=2, sizes=tiny)
    assert report["same_ids"] == dict.fromkeys(report["same_ids"], 1.0) and len(report["same_ids"]) == 3
    assert all(value > 0 for value in report["seconds"].values())
    assert report["ratios"]["fastest generate / parallel"] > 2  # 93 passes against one
