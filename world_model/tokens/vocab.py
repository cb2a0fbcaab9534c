"""The one vocabulary: it owns every id of the model exactly once, in one of two layouts.

`native` lays the blocks side by side and is as small as the data allow. `emu3` puts the same blocks where a
pretrained checkpoint of the Emu3 family has them (Qwen text below, vision from 151854, codes counted down from
the last BPE id 151642, as UniVLA does), so that such weights load without resizing. The rest of the project
only ever asks the blocks and the marks, and never sees which layout it runs on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch

Ids = TypeVar("Ids")  # an int, a numpy array or a torch tensor of integers

STATE_BINS = 256
VALUE_BINS = 64
ACTION_BINS = 256

EMU3_SIZE = 184_622  # rows of Emu3's embedding
EMU3_LAST_TEXT = 151_642
EMU3_SPECIAL = 151_643  # 211 specials, up to 151853
EMU3_VISION = 151_854
EMU3_VISION_SIZE = 32_768


@dataclass(frozen=True)
class Block:
    """A run of ids for one kind of thing. Local number 0 sits at `start`; `step` is -1 where codes count down."""

    name: str
    start: int
    size: int
    step: int = 1

    @property
    def lowest(self) -> int:
        return self.start if self.step > 0 else self.start - self.size + 1

    @property
    def stop(self) -> int:
        """One past the highest id."""
        return self.lowest + self.size

    def encode(self, local: Ids) -> Ids:
        """Local numbers (0 .. size - 1) -> ids; ints, numpy arrays and tensors alike. Not range-checked."""
        return self.start + self.step * local

    def decode(self, ids: Ids) -> Ids:
        """Ids of this block -> local numbers. Not range-checked, so that it stays one operation on tensors."""
        return (ids - self.start) * self.step

    def contains(self, ids: Ids) -> Ids:
        """Elementwise: does the id lie in this block?"""
        return (ids >= self.lowest) & (ids < self.stop)

    def select(self, table: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """The part of logits (..., V), or of an embedding (V, d) with dim=0, in local order: (..., size)."""
        part = table.narrow(dim, self.lowest, self.size)
        return part if self.step > 0 else part.flip(dim)

    def ids(self, device: torch.device | None = None) -> torch.Tensor:
        """All ids in local order, (size,) i64."""
        return self.encode(torch.arange(self.size, device=device))


@dataclass(frozen=True)
class Marks:
    """Special ids. `BOS instruction EOT`, then every segment between its own two marks."""

    pad: int
    bos: int  # begins a sequence
    eot: int  # ends the instruction
    cameras: tuple[tuple[int, int], ...]  # begins and ends the image of each camera
    bot: int  # robot state
    eost: int
    boa: int  # action chunk
    eoa: int
    mask: int  # where the id is still to be predicted
    no: int  # success and held are read as no / yes
    yes: int

    @property
    def all(self) -> tuple[int, ...]:
        single = (self.bot, self.eost, self.boa, self.eoa, self.mask, self.no, self.yes)
        return (self.pad, self.bos, self.eot, *(mark for pair in self.cameras for mark in pair), *single)

    @classmethod
    def consecutive(cls, start: int, num_cameras: int) -> Marks:
        """One id after the other, in the order of the fields."""
        cameras = tuple((start + 3 + 2 * i, start + 4 + 2 * i) for i in range(num_cameras))
        rest = start + 3 + 2 * num_cameras
        return cls(start, start + 1, start + 2, cameras, *range(rest, rest + 7))


@dataclass(frozen=True)
class Vocab:
    """Every id of the model. `size` is the number of rows of the embedding and of the head.

    A gripper has 2 ids for each control step of a chunk: its sign at the start x the step at which it switches. All
    grippers share them.
    """

    layout: str
    size: int
    text: Block
    special: Block
    state: Block
    value: Block
    action: Block
    gripper: Block
    vision: Block
    marks: Marks

    def __post_init__(self) -> None:
        ends = 0
        for block in sorted(self.blocks, key=lambda b: b.lowest):
            if block.size < 1 or block.lowest < ends or block.stop > self.size:
                raise ValueError(
                    f"vocabulary block `{block.name}` [{block.lowest}, {block.stop}) is empty, "
                    f"overlaps another block or leaves [0, {self.size})"
                )
            ends = block.stop
        if ends != self.vision.stop or self.vision.step < 0:
            raise ValueError("the vision block must come last and count upwards")
        marks = self.marks.all
        if len(set(marks)) != len(marks) or not all(self.special.contains(mark) for mark in marks):
            raise ValueError("special marks must be different ids of the block `special`")

    @classmethod
    def native(cls, text_size: int, vision_size: int, num_cameras: int, chunk: int = 8) -> Vocab:
        """The small layout: block after block. chunk: control steps a chunk."""
        marks = Marks.consecutive(text_size, num_cameras)
        sizes = {
            "text": text_size, "special": len(marks.all), "state": STATE_BINS, "value": VALUE_BINS,
            "action": ACTION_BINS, "gripper": 2 * chunk, "vision": vision_size,
        }  # fmt: skip
        blocks, start = {}, 0
        for name, size in sizes.items():
            blocks[name] = Block(name, start, size)
            start += size
        return cls("native", start, marks=marks, **blocks)

    @classmethod
    def emu3(cls, num_cameras: int, vision_size: int = EMU3_VISION_SIZE, chunk: int = 8) -> Vocab:
        """The layout of Emu3 and UniVLA: action code c has id 151642 - c, then gripper, state and value below.

        The text block is what remains of the BPE ids. The first camera has the marks of an image in Emu3; marks that
        those models lack, and those of further cameras, take reserved specials.
        """
        further = [(151_647, 151_648), *((mark, mark + 1) for mark in range(151_654, 151_844, 2))]
        if num_cameras > 1 + len(further):
            raise ValueError(f"the emu3 layout has marks for {1 + len(further)} cameras, got {num_cameras}")
        if not 0 < vision_size <= EMU3_VISION_SIZE:
            raise ValueError(f"the emu3 layout has room for {EMU3_VISION_SIZE} vision codes, got {vision_size}")
        sizes = {"action": ACTION_BINS, "gripper": 2 * chunk, "state": STATE_BINS, "value": VALUE_BINS}
        blocks, start = {}, EMU3_LAST_TEXT
        for name, size in sizes.items():
            blocks[name] = Block(name, start, size, step=-1)
            start -= size
        marks = Marks(
            pad=151_643, bos=151_849, eot=151_646, cameras=((151_852, 151_853), *further)[:num_cameras],
            bot=151_649, eost=151_650, boa=151_844, eoa=151_845, mask=151_651, no=151_652, yes=151_653,
        )  # fmt: skip
        return cls(
            "emu3", EMU3_SIZE, text=Block("text", 0, start + 1), marks=marks,
            special=Block("special", EMU3_SPECIAL, EMU3_VISION - EMU3_SPECIAL),
            vision=Block("vision", EMU3_VISION, vision_size), **blocks,
        )  # fmt: skip

    @property
    def blocks(self) -> tuple[Block, ...]:
        return (self.text, self.special, self.state, self.value, self.action, self.gripper, self.vision)

    def block_of(self, token: int) -> Block:
        """The block that owns an id; ValueError for an id nobody owns."""
        for block in self.blocks:
            if block.contains(token):
                return block
        raise ValueError(f"id {token} belongs to no block of the {self.layout} vocabulary of {self.size} ids")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Vocab:
        """Raise ValueError if the text is not a vocabulary."""
        try:
            raw = json.loads(text)
            blocks = {k: Block(**v) for k, v in raw.items() if k not in ("layout", "size", "marks")}
            cameras = tuple((begin, end) for begin, end in raw["marks"]["cameras"])
            return cls(raw["layout"], raw["size"], marks=Marks(**{**raw["marks"], "cameras": cameras}), **blocks)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"this is not a vocabulary: {error!r}") from error

    @property
    def fingerprint(self) -> str:
        """16 hex digits that differ between any two vocabularies; checked when a checkpoint is loaded."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]
