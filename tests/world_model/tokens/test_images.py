import json

import numpy as np
import pytest
import torch

from envs.types import CameraSpec
from world_model.nn.vision_codes import VisionCodes
from world_model.tokens import images as module
from world_model.tokens.images import ImageConfig, ImageTokenizer, TokenizerError, to_unit

CAMERAS = (CameraSpec("front", 64, 64), CameraSpec("hand", 32, 32), CameraSpec("observation.side", 24, 40))
SMALL = ImageConfig(CAMERAS, levels=(5, 4, 4), width=16, encoder_blocks=1, decoder_blocks=1)


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    made = ImageTokenizer(SMALL)
    for block in (*made.encoder, *made.decoder, made.fine):  # residual layers start as nothing: give them work
        torch.nn.init.normal_((block.narrow if hasattr(block, "narrow") else block.mix).weight, std=0.3)
    torch.nn.init.normal_(made.to_latent.weight, std=1.0)
    return made.eval()


def random_frames(*lead: int, size: int, width: int = 0, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*lead, size, width or size, 3), generator=rng, dtype=torch.uint8)


def test_shapes_of_every_camera(tokenizer: ImageTokenizer):
    """Catches leading dimensions that are lost, an image with too many or too few ids, height taken for width."""
    for camera, count in zip(CAMERAS, (64, 16, 15), strict=True):
        frames = random_frames(2, 3, size=camera.height, width=camera.width)
        ids = tokenizer.encode(frames)
        assert ids.shape == (2, 3, count) and ids.dtype == torch.int64
        assert 0 <= ids.min() and ids.max() < tokenizer.vision_size == 80
        decoded = tokenizer.decode(ids, camera.name)
        assert decoded.shape == frames.shape and decoded.dtype == torch.uint8
        assert tokenizer.encode(frames[0, 0]).shape == (count,)


def test_an_id_depends_on_its_own_patch_only(tokenizer: ImageTokenizer):
    """Catches an encoder that looks at neighbours: static patches would flicker with every motion."""
    frame = random_frames(size=64)
    changed = frame.clone()
    changed[8:16, 16:24] = random_frames(size=64, seed=1)[8:16, 16:24]
    before, after = tokenizer.encode(frame), tokenizer.encode(changed)
    different = (before != after).nonzero().flatten().tolist()
    assert different == [1 * 8 + 2]


def test_ids_of_all_cameras_come_apart_again(tokenizer: ImageTokenizer):
    """Catches the ids of one camera decoded as another's, and two cameras that share their positions."""
    frames = {c.name: random_frames(2, size=c.height, width=c.width, seed=i) for i, c in enumerate(CAMERAS)}
    ids = torch.cat([tokenizer.encode(each) for each in frames.values()], dim=-1)
    found = tokenizer.decode_all(ids)
    assert list(found) == [c.name for c in CAMERAS]
    for name, each in frames.items():
        assert torch.equal(found[name], tokenizer.decode(tokenizer.encode(each), name))
    torch.manual_seed(0)
    twins = ImageTokenizer(ImageConfig((CameraSpec("left", 16, 16), CameraSpec("right", 16, 16)), (4, 4), width=16))
    torch.nn.init.normal_(twins.position_embed[0])
    same = twins.encode(random_frames(size=16))
    assert not torch.equal(twins.decode(same, "left"), twins.decode(same, "right"))


def test_the_same_patch_has_the_same_id_everywhere_and_in_all_cameras(tokenizer: ImageTokenizer):
    """Catches codes that mean another thing at another place or in the other camera."""
    patch = random_frames(size=64)[:8, :8]
    main, side = patch.repeat(8, 8, 1), patch.repeat(3, 5, 1)
    assert len(torch.cat([tokenizer.encode(main), tokenizer.encode(side)]).unique()) == 1


def test_codes_are_the_latents_of_the_ids(tokenizer: ImageTokenizer):
    """Catches expected-latent decoding that disagrees with decoding the likeliest id."""
    ids = tokenizer.encode(random_frames(4, size=64))
    codes = tokenizer.codes()
    assert codes.shape == (tokenizer.vision_size, tokenizer.latent_dim) and len(codes.unique(dim=0)) == len(codes)
    certain = torch.nn.functional.one_hot(ids, tokenizer.vision_size).float() @ codes
    assert torch.equal(tokenizer.decode_latents(certain, "front"), tokenizer.decode(ids, "front"))


def test_a_latent_is_the_sum_of_what_its_digits_add(tokenizer: ImageTokenizer):
    """Catches digits counted in another order than the quantizer counts ids."""
    codes = VisionCodes(tokenizer.config.levels, tokenizer.digit_latents(), width=4, copy_bias=0.0)
    rows = codes.digits(torch.arange(tokenizer.vision_size)) + codes.starts
    torch.testing.assert_close(codes.latents[rows].sum(1), tokenizer.codes())


def test_training_and_run_time_agree(tokenizer: ImageTokenizer):
    """Catches a forward pass that quantizes otherwise than `encode` and `decode` do."""
    frames = random_frames(3, size=32)
    decoded = tokenizer.decode(tokenizer.encode(frames), "hand")
    assert torch.equal(module.to_bytes(tokenizer(to_unit(frames), "hand")), decoded)


def test_encoding_in_parts_changes_nothing(tokenizer: ImageTokenizer, monkeypatch: pytest.MonkeyPatch):
    """Catches frames lost or shuffled at the border between parts."""
    frames = random_frames(7, size=64)
    whole = tokenizer.encode(frames)
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 3)
    assert torch.equal(tokenizer.encode(frames), whole)
    single = torch.stack([tokenizer.decode(ids, "front") for ids in whole])
    assert (tokenizer.decode(whole, "front").int() - single.int()).abs().max() <= 1  # rounding differs with the batch


def test_wrong_input_is_refused(tokenizer: ImageTokenizer):
    """Catches a float image or one of another camera being encoded into nonsense."""
    with pytest.raises(ValueError, match="image must be u8"):
        tokenizer.encode(torch.zeros(64, 64, 3))
    with pytest.raises(ValueError, match="image must be u8"):
        tokenizer.encode(torch.zeros(48, 44, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="latents of camera `hand` must be"):
        tokenizer.decode_latents(torch.zeros(10, 3), "hand")
    with pytest.raises(ValueError, match="knows the cameras front, hand, observation.side, not 'wrist'"):
        tokenizer.decode(torch.zeros(16, dtype=torch.int64), "wrist")
    with pytest.raises(ValueError, match="camera `odd` has 30 x 32 pixels: both must be multiples of 8"):
        ImageConfig((CameraSpec("odd", 30, 32),))
    with pytest.raises(ValueError, match="different names"):
        ImageConfig((CAMERAS[0], CAMERAS[0]))
    with pytest.raises(ValueError, match="levels"):
        ImageConfig(CAMERAS, levels=(2, 2))


def test_save_and_load(tokenizer: ImageTokenizer, tmp_path):
    """Catches weights or settings lost on disk."""
    tokenizer.save(tmp_path, {"psnr": 30.0})
    again = ImageTokenizer.load(tmp_path)
    frames = random_frames(2, size=64)
    assert again.config == SMALL and not again.training
    assert torch.equal(again.decode(again.encode(frames), "front"), tokenizer.decode(tokenizer.encode(frames), "front"))
    assert json.loads((tmp_path / "tokenizer.json").read_text())["figures"] == {"psnr": 30.0}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer.safetensors"]


def test_damaged_files_are_named(tokenizer: ImageTokenizer, tmp_path):
    """Catches a bit flip that shows only in the results."""
    with pytest.raises(TokenizerError, match="train_tokenizer"):
        ImageTokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    weights = tmp_path / "tokenizer.safetensors"
    good = weights.read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    for bad in (bytes(flipped), good[:-10]):
        weights.write_bytes(bad)
        with pytest.raises(TokenizerError, match="tokenizer.safetensors is damaged"):
            ImageTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="tokenizer.json is damaged"):
        ImageTokenizer.load(tmp_path)


def test_random_decoding_is_finite():
    """Catches NaN from an untrained decoder, which `to_bytes` would hide as black pixels."""
    fresh = ImageTokenizer(SMALL)
    assert np.isfinite(fresh(to_unit(random_frames(2, size=64)), "front").detach().numpy()).all()
