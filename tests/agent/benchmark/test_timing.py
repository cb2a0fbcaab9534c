"""What is measured beside seconds."""

import torch

from agent.benchmark.timing import Contestant, gflop, peak_mib, take_turns

CPU = torch.device("cpu")


def test_peak_memory_counts_what_lives_at_a_time():
    """Catches a sum over all that was ever made, and views that are counted as memory of their own."""

    def run():
        for _ in range(3):
            x = torch.zeros(2**18)  # 1 MiB
            y = x.view(2, -1)[0] + 1  # half as much
            x.add_(1)
            del x, y

    assert peak_mib(run, CPU) == 1.5


def test_a_part_counts_as_the_whole():
    """Catches seconds or products of a part that are reported as those of all."""
    x = torch.ones(10, 10)
    runs = []
    whole = Contestant(lambda: runs.append(x @ x), 5, "things", times=4, counted=True)
    rows = take_turns({"a": whole}, 2, CPU, "test")
    assert len(runs) == 5  # a round to warm up, two, and those that count memory and products
    assert gflop(whole) == 4 * 2 * 10**3 / 1e9 == rows["a"]["gflop"]
    assert rows["a"]["per_second"] == 5 / rows["a"]["seconds"] and rows["a"]["unit"] == "things"


def test_fused_attention_is_counted():
    """Catches a decoding that looks cheap because its attention is one kernel."""
    q = torch.ones(2, 4, 5, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.no_grad():
        assert gflop(Contestant(lambda: attend(q, q, q), 1, "things")) == 2 * 2 * (2 * 4) * 5 * 5 * 8 / 1e9
