"""How far a training is, in one file."""

import pytest
import torch

from envs.data.progress import load_progress, save_progress

MADE_FROM = {"settings": {"steps": 3}, "files": {}, "folders": []}


def test_what_is_kept_comes_back(tmp_path):
    """Catches names with slashes that are cut in the wrong place, numbers of another type, and tied weights."""
    path, tied = tmp_path / "training.safetensors", torch.arange(4.0)
    parts = {"model": {"a/b": tied, "c": tied[:2]}, "optimizer": {"0/step": torch.tensor(3, dtype=torch.int64)}}
    assert load_progress(path, MADE_FROM) is None
    save_progress(path, parts, 7, MADE_FROM)
    found, step = load_progress(path, MADE_FROM)
    assert step == 7 and found.keys() == parts.keys()
    for part, named in parts.items():
        assert found[part].keys() == named.keys()
        assert all(torch.equal(found[part][name], value) for name, value in named.items())
        assert all(found[part][name].dtype == value.dtype for name, value in named.items())


def test_of_something_else_or_damaged_it_is_refused(tmp_path):
    """Catches a training that goes on from another one's file, or begins anew in silence."""
    path = tmp_path / "training.safetensors"
    save_progress(path, {"model": {"a": torch.zeros(2)}}, 7, MADE_FROM)
    with pytest.raises(ValueError, match="`steps` was 3 and is 4"):
        load_progress(path, {**MADE_FROM, "settings": {"steps": 4}})
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="damaged .*: delete it"):
        load_progress(path, MADE_FROM)
