import pytest
import torch

from world_model.device import choose_device, fast_precision


def test_a_device_that_is_not_there_is_refused():
    """Catches a device that silently falls back."""
    assert choose_device("cpu").type == "cpu"
    assert (choose_device("auto").type == "cpu") == (not torch.accelerator.is_available())
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device=auto"):
            choose_device("cuda")


def test_precision_is_one_that_the_model_computes_in():
    """Catches a processor whose abilities cannot be asked for."""
    assert fast_precision(torch.device("cpu")) in (torch.bfloat16, torch.float32)
    assert fast_precision(torch.device("cuda")) is torch.bfloat16
