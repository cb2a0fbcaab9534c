import json

import numpy as np
import pytest
import torch

from world_model.nn.vision_codes import VisionCodes
from world_model.tokens import images as module
from world_model.tokens.images import MAIN_IDS, WRIST_IDS, FrameConfig, FrameTokenizer, TokenizerError, to_unit

SMALL = FrameConfig(levels=(5, 4, 4), width=16, encoder_blocks=1, decoder_blocks=1)


@pytest.fixture(scope="module")
def tokenizer() -> FrameTokenizer:
    torch.manual_seed(0)
    made = FrameTokenizer(SMALL)
    for block in (*made.encoder, *made.decoder, made.fine):  # residual layers start as nothing: give them work
        torch.nn.init.normal_((block.narrow if hasattr(block, "narrow") else block.mix).weight, std=0.3)
    torch.nn.init.normal_(made.to_latent.weight, std=1.0)
    return made.eval()


def random_frames(*lead: int, size: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*lead, size, size, 3), generator=rng, dtype=torch.uint8)


def test_shapes_of_both_views(tokenizer: FrameTokenizer):
    """Catches leading dimensions that are lost, and a frame with too many or too few ids."""
    for size, count in ((64, MAIN_IDS), (32, WRIST_IDS)):
        frames = random_frames(2, 3, size=size)
        ids = tokenizer.encode(frames)
        assert ids.shape == (2, 3, count) and ids.dtype == torch.int64
        assert 0 <= ids.min() and ids.max() < tokenizer.vision_size == 80
        decoded = tokenizer.decode(ids)
        assert decoded.shape == frames.shape and decoded.dtype == torch.uint8
        assert tokenizer.encode(frames[0, 0]).shape == (count,)


def test_an_id_depends_on_its_own_patch_only(tokenizer: FrameTokenizer):
    """Catches an encoder that looks at neighbours: static patches would flicker with every motion."""
    frame = random_frames(size=64)
    changed = frame.clone()
    changed[8:16, 16:24] = random_frames(size=64, seed=1)[8:16, 16:24]
    before, after = tokenizer.encode(frame), tokenizer.encode(changed)
    different = (before != after).nonzero().flatten().tolist()
    assert different == [1 * 8 + 2]


def test_the_same_patch_has_the_same_id_everywhere_and_in_both_views(tokenizer: FrameTokenizer):
    """Catches codes that mean another thing at another place or in the other camera."""
    patch = random_frames(size=64)[:8, :8]
    main, wrist = patch.repeat(8, 8, 1), patch.repeat(4, 4, 1)
    assert len(torch.cat([tokenizer.encode(main), tokenizer.encode(wrist)]).unique()) == 1


def test_codes_are_the_latents_of_the_ids(tokenizer: FrameTokenizer):
    """Catches expected-latent decoding that disagrees with decoding the likeliest id."""
    ids = tokenizer.encode(random_frames(4, size=64))
    codes = tokenizer.codes()
    assert codes.shape == (tokenizer.vision_size, tokenizer.latent_dim) and len(codes.unique(dim=0)) == len(codes)
    certain = torch.nn.functional.one_hot(ids, tokenizer.vision_size).float() @ codes
    assert torch.equal(tokenizer.decode_latents(certain), tokenizer.decode(ids))


def test_a_latent_is_the_sum_of_what_its_digits_add(tokenizer: FrameTokenizer):
    """Catches digits counted in another order than the quantizer counts ids."""
    codes = VisionCodes(tokenizer.config.levels, tokenizer.digit_latents(), width=4, copy_bias=0.0)
    rows = codes.digits(torch.arange(tokenizer.vision_size)) + codes.starts
    torch.testing.assert_close(codes.latents[rows].sum(1), tokenizer.codes())


def test_training_and_run_time_agree(tokenizer: FrameTokenizer):
    """Catches a forward pass that quantizes otherwise than `encode` and `decode` do."""
    frames = random_frames(3, size=32)
    assert torch.equal(module.to_bytes(tokenizer(to_unit(frames))), tokenizer.decode(tokenizer.encode(frames)))


def test_encoding_in_parts_changes_nothing(tokenizer: FrameTokenizer, monkeypatch: pytest.MonkeyPatch):
    """Catches frames lost or shuffled at the border between parts."""
    frames = random_frames(7, size=64)
    whole = tokenizer.encode(frames)
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", 3)
    assert torch.equal(tokenizer.encode(frames), whole)
    assert torch.equal(tokenizer.decode(whole), torch.stack([tokenizer.decode(ids) for ids in whole]))


def test_wrong_input_is_refused(tokenizer: FrameTokenizer):
    """Catches a float image or one of another camera being encoded into nonsense."""
    with pytest.raises(ValueError, match="frame must be u8"):
        tokenizer.encode(torch.zeros(64, 64, 3))
    with pytest.raises(ValueError, match="frame must be u8"):
        tokenizer.encode(torch.zeros(48, 48, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="latents must be"):
        tokenizer.decode_latents(torch.zeros(10, 3))
    with pytest.raises(ValueError, match="levels"):
        FrameConfig(levels=(2, 2))


def test_save_and_load(tokenizer: FrameTokenizer, tmp_path):
    """Catches weights or settings lost on disk."""
    tokenizer.save(tmp_path, {"psnr": 30.0})
    again = FrameTokenizer.load(tmp_path)
    frames = random_frames(2, size=64)
    assert again.config == SMALL and not again.training
    assert torch.equal(again.decode(again.encode(frames)), tokenizer.decode(tokenizer.encode(frames)))
    assert json.loads((tmp_path / "tokenizer.json").read_text())["figures"] == {"psnr": 30.0}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer.safetensors"]


def test_damaged_files_are_named(tokenizer: FrameTokenizer, tmp_path):
    """Catches a bit flip that shows only in the results."""
    with pytest.raises(TokenizerError, match="train_tokenizer"):
        FrameTokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    weights = tmp_path / "tokenizer.safetensors"
    good = weights.read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    for bad in (bytes(flipped), good[:-10]):
        weights.write_bytes(bad)
        with pytest.raises(TokenizerError, match="tokenizer.safetensors is damaged"):
            FrameTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="tokenizer.json is damaged"):
        FrameTokenizer.load(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Catches a write that destroys the good file before the new one is whole."""
    path = tmp_path / "file"
    module.write_whole(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="file.*No space left.*run the same command again"):
        module.write_whole(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_random_decoding_is_finite():
    """Catches NaN from an untrained decoder, which `to_bytes` would hide as black pixels."""
    fresh = FrameTokenizer(SMALL)
    assert np.isfinite(fresh(to_unit(random_frames(2, size=64))).detach().numpy()).all()
