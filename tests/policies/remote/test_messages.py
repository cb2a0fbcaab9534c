"""The wire: the same bytes as openpi-client's, and nothing but data out of whatever arrives."""

import random

import numpy as np
import pytest

pytest.importorskip("websockets", reason="pip install 'nextstate[serve]'")

import msgpack

from envs.types import Spec
from policies.remote.messages import Keys, flat, pack, unpack
from tests.robots import ARM, HANDS, UNEVEN, made_up
from tests.viewed import ROBOT as VIEWED

MESSAGE = {
    "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "strided": np.arange(10)[::2], "scalar": np.float32(2.5),
    "true": np.bool_(True), "empty": np.zeros((0, 3)), "point": np.array(3.0), "big": np.arange(3, dtype=">i4"),
    "double": np.float64(1.5), "nested": {"text": "Ünï", "list": [1, 2.5, None, True, -7]}, "bytes": b"\x00\xff",
}  # fmt: skip


def test_the_bytes_are_openpis():
    """Catches a way of packing that only our own two ends understand."""
    theirs = pytest.importorskip("openpi_client.msgpack_numpy", reason="pip install --no-deps openpi-client")
    assert pack(MESSAGE) == theirs.packb(MESSAGE)
    for name, value in unpack(theirs.packb(MESSAGE)).items():
        np.testing.assert_array_equal(value, MESSAGE[name])
        assert getattr(value, "dtype", None) == (None if name == "double" else getattr(MESSAGE[name], "dtype", None))
        assert np.shape(value) == np.shape(MESSAGE[name])


@pytest.mark.parametrize("value", [np.array([object()]), np.array(["a"]), np.array([1j]), np.datetime64("now"), {1, 2}])
def test_only_numbers_are_packed(value):
    """Catches an array of objects on its way out, which would need pickle at the other end."""
    with pytest.raises(ValueError, match="cannot hold"):
        pack({"x": value})


FOREIGN = ["|O", "O8", "<U4", "|S8", "|V8", "<M8[s]", "<c8", "<f16", "i4,i4", "{'a':1}", "b2", 7, None]


@pytest.mark.parametrize("dtype", FOREIGN)
def test_only_arrays_of_numbers_are_unpacked(dtype):
    """Catches memory of pointers that a stranger fills, and whatever else numpy makes of a word."""
    for kind in (b"__ndarray__", b"__npgeneric__"):
        data = b"12345678" if kind == b"__ndarray__" else 1
        with pytest.raises(ValueError):
            unpack(msgpack.packb({"x": {kind: True, b"data": data, b"dtype": dtype, b"shape": [1]}}))


def test_damage_is_a_value_error():
    """Catches any other exception, which a server that expects this one would not survive."""
    rng, good, refused = random.Random(0), pack(MESSAGE), 0
    for _ in range(4000):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        try:
            unpack(bytes(bad[: rng.randrange(len(bad))] if rng.random() < 0.3 else bad))
        except ValueError as error:
            refused += 1
            assert len(str(error)) < 300
    assert refused > 1000


def test_how_much_a_message_may_hold():
    """Catches megabytes that become gigabytes of small objects."""
    for frame in (
        b"\xdc\x04\x00" + b"\x90" * 1024,
        msgpack.packb({"a": [[]] * 300}),
        msgpack.packb({"a": {str(i): {} for i in range(300)}}),
        msgpack.packb({"a": [0] * 1025}),
        msgpack.packb({"a": "x" * 4097}),
    ):
        with pytest.raises(ValueError, match="no message in msgpack"):
            unpack(frame)
    assert unpack(msgpack.packb({"a": [[]] * 300}), containers=1000) == {"a": [[]] * 300}
    for frame in ("text", b"", msgpack.packb([1]), msgpack.packb(1), msgpack.packb({1: 2})):
        with pytest.raises(ValueError):
            unpack(frame)


@pytest.mark.parametrize("spec", [ARM, HANDS, UNEVEN, VIEWED], ids=["arm", "hands", "uneven", "viewed"])
def test_an_observation_arrives_as_it_was_sent(spec):
    """Catches a camera, a dimension or a pose that is lost or rounded on the way; a robot without a state."""
    sent, keys = made_up(spec).obs(3), Keys(spec)
    got = keys.observation(flat(unpack(pack(keys.request(sent, "go")))))
    np.testing.assert_array_equal(got.state, sent.state)
    assert list(got.images) == list(sent.images) and got.state.dtype == np.float32
    for name, image in sent.images.items():
        np.testing.assert_array_equal(got.images[name], image)
    for camera in spec.cameras:
        assert (camera.name in got.poses) == camera.posed
    assert Spec.from_dict(unpack(pack({"spec": spec.to_dict()}), 10_000)["spec"]) == spec


def test_other_names():
    """Catches keys that point two ways, or nowhere."""
    keys = Keys(HANDS, {"left": "images/cam_high", "state": "state", "prompt": "task"})
    sent = made_up(HANDS).obs(0)
    request = keys.request(sent, "go")
    assert set(request) == {"images/cam_high", "observation/right", "state", "task"} and request["task"] == "go"
    nested = {"images": {"cam_high": request.pop("images/cam_high")}, **request}
    np.testing.assert_array_equal(keys.observation(flat(nested)).images["left"], sent.images["left"])
    assert Keys(HANDS, keys.to_dict()) == Keys(HANDS, {**keys.to_dict()})
    with pytest.raises(ValueError, match="renames middle; there are left, prompt, right, state"):
        Keys(HANDS, {"middle": "x"})
    with pytest.raises(ValueError, match="must differ"):
        Keys(HANDS, {"left": "x", "right": "x"})
