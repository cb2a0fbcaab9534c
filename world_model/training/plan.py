"""What a training takes before it is begun: parameters, memory a device, and how the model is spread over devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from world_model.checkpoint import FRAMES
from world_model.model import WorldModel
from world_model.training.sharding import units

DEVICES = (1, 8, 64)
FP32 = 4  # bytes; weights, gradients and moments are kept in it
GIB = 2**30

ByOptimizer = Callable[[WorldModel], tuple[Mapping[str, nn.Parameter], Mapping[str, nn.Parameter]]]


def rows_a_device(shape: torch.Size, devices: int) -> int:
    """Of a parameter's rows, those that the first of several devices holds; the last ones may hold fewer."""
    return -(-shape[0] // devices)


def held(parameters: Iterable[Tensor], devices: int) -> int:
    """Numbers of these parameters that the first of several devices holds."""
    return sum(rows_a_device(p.shape, devices) * p.shape[1:].numel() for p in parameters)


def memory(model: WorldModel, by_optimizer: ByOptimizer, precision: torch.dtype, devices: int) -> dict[str, int]:
    """Bytes that the first of several devices holds, by what they are for; activations are not among them.

    by_optimizer: what Muon and what AdamW train. precision: of the arithmetic.
    """
    named = dict(model.named_parameters())
    frozen = [p for name, p in named.items() if name.startswith(FRAMES)]
    spread = [p for name, p in named.items() if not name.startswith(FRAMES)]
    matrices, others = by_optimizer(model)
    found = {
        "weights": FP32 * (held(spread, devices) + held(frozen, 1)),
        "gradients": FP32 * held([*matrices.values(), *others.values()], devices),
        "Muon's momentum": FP32 * held(matrices.values(), devices),
        "AdamW's moments": 2 * FP32 * held(others.values(), devices),
    }
    if devices > 1:
        blocks = [held(unit.parameters(), 1) for unit in units(model).values()]
        rest = held(spread, 1) - sum(blocks)
        # The next block is gathered while one computes; gradients are whole until they are averaged.
        found["gathered"] = 2 * FP32 * rest + 3 * precision.itemsize * max(blocks)
    return found


def describe(model: WorldModel, by_optimizer: ByOptimizer, precision: torch.dtype) -> str:
    """Tables as a person reads them. model: its weights may be on the meta device."""
    return "\n\n".join([_parameters(model), _memory(model, by_optimizer, precision), _spread(model)])


def _parameters(model: WorldModel) -> str:
    counts = {f"transformer.{name}": _count(part) for name, part in model.transformer.named_children()}
    counts |= {name: _count(part) for name, part in model.named_children() if name not in ("transformer", FRAMES[:-1])}
    layers = len(model.transformer.layers)
    notes = {"transformer.layers": f"{layers} of {_short(counts['transformer.layers'] / layers)}"}
    rows = [(name, _short(count), notes.get(name, "")) for name, count in counts.items()]
    rows.append(("all", _short(sum(counts.values())), f"{sum(counts.values()):,}"))
    rows.append((FRAMES[:-1], _short(_count(model.frame_tokenizer)), "trained before, kept as it is"))
    return "parameters\n" + _table(rows)


def _memory(model: WorldModel, by_optimizer: ByOptimizer, precision: torch.dtype) -> str:
    found = {devices: memory(model, by_optimizer, precision, devices) for devices in DEVICES}
    names = list(found[DEVICES[-1]])
    rows = [("", *(f"{devices} device{'s' if devices > 1 else ''}" for devices in DEVICES))]
    rows += [(name, *(_gib(found[devices].get(name, 0)) for devices in DEVICES)) for name in names]
    rows.append(("all", *(_gib(sum(found[devices].values())) for devices in DEVICES)))
    whole = FP32 * sum(p.numel() for p in model.parameters())
    return (
        f"memory a device, GiB ({str(precision).removeprefix('torch.')} arithmetic; all that is kept is float32)\n"
        + _table(rows)
        + "\n  Activations come on top, as a share of `batch` has them, and what Muon's step takes for a moment."
        + f"\n  Of several processes the first also holds the whole model, {_gib(whole)} GiB, on its device while it "
        + "measures and\n  exports, and each builds the whole model in the memory of its machine while it starts."
    )


def _spread(model: WorldModel) -> str:
    named, several = units(model), DEVICES[1:]
    first, last = list(named)[0], list(named)[-1].rpartition(".")[2]
    inside = {p for unit in named.values() for p in unit.parameters()}
    rest = {name: p for name, p in model.named_parameters() if p not in inside and not name.startswith(FRAMES)}

    def rows(parameters: Iterable[tuple[str, Tensor]]) -> list[tuple[str, ...]]:
        return [
            (f"  {name}", " x ".join(map(str, p.shape)), *(str(rows_a_device(p.shape, n)) for n in several))
            for name, p in parameters
        ]

    lines = [("", "whole", *(f"rows of {n}" for n in several))]
    lines.append((f"{first} to {last}, each gathered while it computes, forward and backward",))
    lines += rows(named[first].named_parameters())
    lines.append(("the rest, gathered from the start of a step to the end of its backward pass",))
    lines += rows(rest.items())
    lines.append((f"{FRAMES[:-1]}, whole on every device",))
    return "sharding plan: rows that a device holds of every parameter, its gradient and its moments\n" + _table(lines)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _short(count: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _table(rows: list[tuple[str, ...]]) -> str:
    """Columns under each other, the first to the left and figures to the right; a row of one cell is a title."""
    full = [row for row in rows if len(row) > 1]
    widths = [max(len(row[i]) for row in full) for i in range(len(full[0]))]
    lines = []
    for name, *figures in rows:
        cells = (f"{figure:>{width}}" for figure, width in zip(figures, widths[1:], strict=False))
        lines.append("  " + "  ".join([f"{name:{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)
