import pytest
import torch

from world_model.nn.device import choose_device, choose_precision, fast_precision


def test_a_device_that_is_not_there_is_refused():
    """Catches a device that silently falls back."""
    assert choose_device("cpu").type == "cpu"
    assert (choose_device("auto").type == "cpu") == (not torch.accelerator.is_available())
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device=auto"):
            choose_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:-1", "", "CUDA"])
def test_a_name_that_torch_does_not_know_is_one_line(name):
    """Catches the traceback of torch for a mistyped device."""
    with pytest.raises(ValueError, match=f"^device={name}: .*use auto, cpu or cuda$"):
        choose_device(name)


@pytest.mark.parametrize("name", ["meta", "vulkan", "cuda:999"])
def test_a_device_without_hardware_is_refused(name):
    """Catches devices that torch can name but not compute on: the first tensor would fail far from the setting."""
    with pytest.raises(ValueError, match=f"device={name} was asked for, but torch sees"):
        choose_device(name)


def test_precision_is_one_that_the_model_computes_in():
    """Catches a processor whose abilities cannot be asked for."""
    assert fast_precision(torch.device("cpu")) in (torch.bfloat16, torch.float32)
    assert fast_precision(torch.device("cuda")) is torch.bfloat16


def test_a_precision_by_name():
    """Catches a typing error that silently trains in another precision."""
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) is torch.float32 and choose_precision("bf16", cpu) is torch.bfloat16
    assert choose_precision("auto", cpu) is fast_precision(cpu)
    with pytest.raises(ValueError, match="auto, bf16, fp32"):
        choose_precision("fp16", cpu)
