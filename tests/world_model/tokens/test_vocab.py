import numpy as np
import pytest
import torch

from world_model.tokens.vocab import Block, Marks, Vocab

LAYOUTS = [Vocab.native(300, 1000, 2), Vocab.emu3(1), Vocab.emu3(3, vision_size=1000)]


@pytest.mark.parametrize("vocab", LAYOUTS, ids=["native", "emu3", "emu3-small"])
def test_every_id_has_one_owner(vocab: Vocab):
    """Catches overlapping blocks: an action id that is also text, or a mark that is also a bin."""
    ids = torch.cat([block.ids() for block in vocab.blocks])
    assert len(ids.unique()) == len(ids) == sum(block.size for block in vocab.blocks)
    assert ids.min() >= 0 and ids.max() < vocab.size


@pytest.mark.parametrize("vocab", LAYOUTS, ids=["native", "emu3", "emu3-small"])
def test_blocks_round_trip(vocab: Vocab):
    """Catches an off-by-one in a block that counts down, for ints, numpy and torch."""
    for block in vocab.blocks:
        for local in (torch.arange(block.size), np.arange(block.size), block.size - 1):
            ids = block.encode(local)
            assert np.all(np.asarray(block.decode(ids) == local))
            assert np.all(np.asarray(block.contains(ids)))
        assert not block.contains(block.lowest - 1) and not block.contains(block.stop)
        assert vocab.block_of(block.encode(0)) == block


def test_select_is_in_local_order():
    """Catches logits of a block that counts down being read backwards."""
    logits = torch.arange(40.0).expand(2, 40)
    for block in (Block("a", 5, 10), Block("b", 30, 10, step=-1)):
        assert torch.equal(block.select(logits), logits[:, block.ids()])
        assert torch.equal(block.select(logits.T, dim=0), logits.T[block.ids()])


def test_emu3_ids_are_those_of_the_pretrained_family():
    """Catches a shifted layout, with which pretrained weights would load and mean something else."""
    vocab = Vocab.emu3(2)
    assert vocab.size == 184_622
    assert vocab.vision.encode(0) == 151_854 and vocab.vision.stop == vocab.size
    assert vocab.action.encode(0) == 151_642 and vocab.action.encode(255) == 151_387
    assert (vocab.marks.bos, *vocab.marks.cameras[0]) == (151_849, 151_852, 151_853)
    assert (vocab.marks.boa, vocab.marks.eoa) == (151_844, 151_845)


def test_json_round_trip_and_fingerprint():
    """Catches a checkpoint that loads under another vocabulary without a word."""
    for vocab in LAYOUTS:
        assert Vocab.from_json(vocab.to_json()) == vocab
    assert len({vocab.fingerprint for vocab in LAYOUTS}) == len(LAYOUTS)
    for broken in ("{", "[]", '{"layout": "native"}'):
        with pytest.raises(ValueError, match="not a vocabulary"):
            Vocab.from_json(broken)


def test_overlap_and_foreign_ids_are_refused():
    """Catches a hand-made vocabulary in which two things share an id."""
    good = Vocab.native(10, 10, 1)
    with pytest.raises(ValueError, match="vision"):
        Vocab.from_json(good.to_json().replace(f'"start": {good.vision.start}', '"start": 12'))
    with pytest.raises(ValueError, match="no block"):
        good.block_of(good.size)
    with pytest.raises(ValueError, match="room for"):
        Vocab.emu3(1, vision_size=40_000)
    with pytest.raises(ValueError, match="marks for 97 cameras"):
        Vocab.emu3(98)
    assert isinstance(good.marks, Marks)


def test_every_camera_has_marks_of_its_own():
    """Catches two cameras that the model could not tell apart, and marks that shifted: those of two cameras are the
    ids that the shipped weights were trained with."""
    assert Vocab.native(300, 1000, 2).marks == Marks(300, 301, 302, ((303, 304), (305, 306)), *range(307, 314))
    for make in (lambda n: Vocab.native(300, 1000, n), Vocab.emu3):
        for cameras in (1, 3, 20):
            marks = make(cameras).marks
            assert len(marks.cameras) == cameras and len(set(marks.all)) == 10 + 2 * cameras
    assert Vocab.emu3(2).marks.cameras[1] == (151_647, 151_648)
