import os
import tempfile
import warnings

import cv2
import mujoco
import numpy as np
import pytest

from envs.sim import meshes

MODEL = """
<mujoco>
  <asset>
    <mesh name="seen" file="{file}"/> <mesh name="felt" file="{copy}"/> <mesh name="both" file="{copy}"/>
    <texture name="wood" type="2d" file="{image}"/> <texture type="skybox" builtin="flat" width="512" height="512"/>
    <material name="mirror" reflectance="0.8" texture="wood"/>
  </asset>
  <worldbody>
    <light pos="0 0 2" castshadow="true"/>
    <body><freejoint/>
      <geom type="mesh" mesh="seen" group="1" contype="0" conaffinity="0" material="mirror" mass="0"/>
      <geom type="mesh" mesh="felt" group="0"/>
      <geom type="mesh" mesh="both" group="1" contype="0" conaffinity="0" mass="0"/>
      <geom type="mesh" mesh="both" group="0" contype="0" conaffinity="1"/>
    </body>
  </worldbody>
</mujoco>
"""


def ball(rings: int = 24, radius: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """A sphere of squares cut in two, each with corners of its own, as exporters write them."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, 2 * rings), indexing="ij")
    points = radius * np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], -1)
    a, b, c, d = points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]
    corners = np.concatenate([np.stack([a, b, c], 2).reshape(-1, 3, 3), np.stack([a, c, d], 2).reshape(-1, 3, 3)])
    return corners.reshape(-1, 3).astype(np.float32), np.arange(3 * len(corners)).reshape(-1, 3)


@pytest.fixture
def ball_file(tmp_path, monkeypatch):
    monkeypatch.setenv("NEXTSTATE_CACHE", str(tmp_path / "cache"))
    vertices, faces = ball()
    lines = [f"v {x:.8f} {y:.8f} {z:.8f}" for x, y, z in vertices] + [f"f {a}//{a} {b}//1 {c}" for a, b, c in faces + 1]
    file = tmp_path / "ball.obj"
    file.write_text("mtllib none.mtl\n" + "\n".join(lines) + "\n")
    (tmp_path / "copy.obj").write_bytes(file.read_bytes())
    wood = np.zeros((700, 300, 3), np.uint8)
    wood[350:] = (40, 80, 160)
    cv2.imwrite(str(tmp_path / "wood.png"), wood)
    return file


def model_xml(ball_file) -> str:
    return MODEL.format(file=ball_file, copy=ball_file.with_name("copy.obj"), image=ball_file.with_name("wood.png"))


def test_a_decimated_mesh_keeps_its_shape(ball_file):
    """Split vertices that are not welded tear open, and a lost frame would move the part on the robot."""
    vertices, faces = meshes.read_mesh(ball_file)
    fewer, fewer_faces = meshes.read_mesh(meshes.decimated(str(ball_file)))
    assert len(fewer_faces) < len(faces) / 4
    np.testing.assert_allclose(np.linalg.norm(fewer, axis=1), 0.1, atol=0.004)
    np.testing.assert_allclose(fewer.max(0), vertices.max(0), atol=0.004)
    edges = np.sort(meshes.weld(fewer, fewer_faces)[1][:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all(), "the surface has holes"


def test_only_what_is_merely_seen_is_replaced(ball_file):
    """Replacing a mesh that collides (even one-sidedly) would change the physics with the look."""
    xml = model_xml(ball_file)
    before, after = (mujoco.MjModel.from_xml_string(text) for text in (xml, meshes.cheapen(xml)))
    faces = {name: (before.mesh(name).facenum[0], after.mesh(name).facenum[0]) for name in ("seen", "felt", "both")}
    assert faces["seen"][1] < faces["seen"][0] / 4
    assert faces["felt"][0] == faces["felt"][1] and faces["both"][0] == faces["both"][1]
    np.testing.assert_array_equal(before.body_mass, after.body_mass)
    np.testing.assert_array_equal(before.body_inertia, after.body_inertia)


def test_light_is_plain(ball_file):
    """A shadow map, a mirror or multisampling left on costs more than all triangles together."""
    model = mujoco.MjModel.from_xml_string(meshes.cheapen(model_xml(ball_file)))
    assert model.vis.quality.shadowsize == 0 and model.vis.quality.offsamples == 0
    assert not model.light_castshadow.any() and not model.mat_reflectance.any()


def test_textures_are_small_and_look_alike(ball_file):
    """A texture that is turned or recoloured would change the scene, one left large costs half a second a reset."""
    model = mujoco.MjModel.from_xml_string(meshes.cheapen(model_xml(ball_file)))
    assert list(model.tex_width) == [meshes.TEXTURE_SIZE, meshes.PAINTED_SIZE]
    small = cv2.imread(str(meshes.shrunk(str(ball_file.with_name("wood.png")))))
    assert small.shape == (256, 256, 3) and not small[:120].any() and (small[136:] == (40, 80, 160)).all()


def test_a_broken_texture_is_named(tmp_path):
    """A truncated texture must not become a black table."""
    (tmp_path / "felt.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="felt.png"):
        meshes.small_png(tmp_path / "felt.png")


def test_the_cache_is_reproducible_and_never_half_written(ball_file):
    """Two machines must see the same robot, and a worker must never load what another is still writing."""
    first = meshes.decimated(str(ball_file))
    content, written = first.read_bytes(), first.stat().st_mtime_ns
    meshes.made.cache_clear()
    assert meshes.decimated(str(ball_file)) == first and first.stat().st_mtime_ns == written, "made twice"
    first.unlink()
    meshes.made.cache_clear()
    assert meshes.decimated(str(ball_file)).read_bytes() == content
    assert [file.suffix for file in first.parent.iterdir()] == [".stl"], "a temporary file was left behind"


def test_a_changed_source_is_decimated_again(ball_file):
    """A cache keyed by name would show the old robot after robosuite is upgraded."""
    first = meshes.decimated(str(ball_file))
    meshes.made.cache_clear()
    ball_file.write_text(ball_file.read_text() + "# another\n")
    assert meshes.decimated(str(ball_file)) != first


@pytest.mark.parametrize("content", [b"solid text stl", bytes(80) + (9).to_bytes(4, "little") + b"short"])
def test_a_broken_mesh_is_named(tmp_path, content):
    """A truncated mesh must not become an empty robot."""
    (tmp_path / "arm.stl").write_bytes(content)
    with pytest.raises(ValueError, match="arm.stl"):
        meshes.read_mesh(tmp_path / "arm.stl")


def test_an_unwritable_cache_says_what_to_do(ball_file, tmp_path, monkeypatch):
    """A full or read-only disk must name the folder and the way out."""
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("NEXTSTATE_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(OSError, match="NEXTSTATE_CACHE"):
        meshes.decimated(str(ball_file))


def test_another_user_may_read_what_was_made(ball_file):
    """A cache that only its maker can read stops everybody else who shares it."""
    before = os.umask(0o022)
    try:
        made = meshes.decimated(str(ball_file))
    finally:
        os.umask(before)
    assert made.stat().st_mode & 0o777 == 0o644


def test_a_home_that_cannot_be_written(ball_file, tmp_path, monkeypatch):
    """In many containers the home is read-only or missing: nobody chose that folder, so another one serves; said once,
    and found again by the next process."""
    (tmp_path / "occupied").write_text("")
    monkeypatch.delenv("NEXTSTATE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    meshes.say_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="NEXTSTATE_CACHE") as told:
        made = meshes.decimated(str(ball_file))
        meshes.shrunk(str(ball_file.with_name("wood.png")))
    assert len(told) == 1 and made.parent == tmp_path / f"nextstate-{os.getuid()}"
    written = made.stat().st_mtime_ns
    meshes.made.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert meshes.decimated(str(ball_file)).stat().st_mtime_ns == written


def test_a_read_only_cache_that_is_full_serves(ball_file, monkeypatch):
    """An image with everything in place must not ask for a folder that can be written."""
    made = meshes.decimated(str(ball_file))
    meshes.made.cache_clear()

    def refused(*_):
        raise OSError("read-only")

    monkeypatch.setattr(meshes, "write_whole", refused)
    assert meshes.decimated(str(ball_file)) == made


def test_a_strangers_temporary_folder_is_not_used(ball_file, tmp_path, monkeypatch):
    """Whoever makes the folder first could put another robot there."""
    (tmp_path / "occupied").write_text("")
    monkeypatch.delenv("NEXTSTATE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"nextstate-{os.getuid()}"
    folder.mkdir()
    monkeypatch.setattr(meshes, "is_ours", lambda folder: folder.parent != tmp_path)
    with pytest.raises(OSError, match="NEXTSTATE_CACHE"):
        meshes.decimated(str(ball_file))
    assert not list(folder.iterdir())
