"""Cheap rendering: an XML processor for robosuite that keeps the look of a scene and drops its weight.

A software renderer is bound by triangles, not by pixels, and a Panda brings 168k of them that only the camera
sees. `cheapen` replaces those meshes by decimated ones, shrinks textures (uploading them is most of what a new
renderer costs) and switches off what a 64-pixel frame does not show: shadows, reflections and multisampling.
Physics is untouched: only meshes are replaced whose every geom neither collides nor has mass (robosuite's visual
group), and masses come from group 0 alone.

    env.set_xml_processor(meshes.cheapen)   # before the first hard reset

The copies are made once a machine, by fixed rules from the source files' bytes, and kept under
`$NEXTSTATE_CACHE` (or `$XDG_CACHE_HOME/nextstate`, or `~/.cache/nextstate`) in `meshes/`. Where nobody chose that
folder and it cannot be written, as in many containers, they are kept in the folder for temporary files instead.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import warnings
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from functools import cache
from pathlib import Path

import cv2
import fast_simplification
import numpy as np

from envs.data.files import write_whole

VISUAL_GROUP = "1"  # robosuite: group 0 collides and weighs, group 1 is only seen
RULE = "weld-1e-6 quadric sqrt-10"  # names how a mesh is reduced; part of the cached file's name
FACES_PER_ROOT = 10  # a mesh of F faces keeps about 10 * sqrt(F): detail falls slower than size
MIN_FACES = 64
TEXTURE_SIZE = 256  # pixels
PAINTED_SIZE = 32  # pixels, for flat colours and gradients
WELD = 1e-6  # metres; exporters split vertices at every seam, and a split mesh tears when it is decimated

STL_FACE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("flags", "<u2")])
STL_HEADER = 80


def cheapen(xml: str) -> str:
    """A full MuJoCo model as XML -> the same model, cheap to render.

    Raises OSError if no cache folder can be written, ValueError for a mesh or texture that cannot be read.
    """
    root = ElementTree.fromstring(xml)
    replace_meshes(root)
    shrink_textures(root)
    plain_light(root)
    return ElementTree.tostring(root, encoding="unicode")


def replace_meshes(root: ElementTree.Element) -> None:
    """Point every mesh that is only seen at a decimated copy of its file."""
    geoms_of = defaultdict(list)
    for geom in root.iter("geom"):
        if "mesh" in geom.attrib:
            geoms_of[geom.get("mesh")].append(geom)
    for mesh in root.iter("mesh"):
        geoms = geoms_of[mesh.get("name")]
        if mesh.get("file") and geoms and all(map(only_seen, geoms)):
            mesh.set("file", str(decimated(mesh.get("file"))))
            mesh.set("inertia", "shell")  # a decimated sheet may enclose no volume, which MuJoCo refuses


def shrink_textures(root: ElementTree.Element) -> None:
    """Textures of at most `TEXTURE_SIZE` pixels; those that MuJoCo paints itself have no detail to keep."""
    for texture in root.iterfind("asset/texture"):
        if texture.get("file"):
            texture.set("file", str(shrunk(texture.get("file"))))
        elif texture.get("builtin") in ("flat", "gradient"):
            for side in ("width", "height"):
                texture.set(side, str(min(int(texture.get(side, "0")) or PAINTED_SIZE, PAINTED_SIZE)))


def plain_light(root: ElementTree.Element) -> None:
    """No shadows, no reflections, no multisampling."""
    visual = root.find("visual")
    if visual is None:
        visual = ElementTree.SubElement(root, "visual")
    quality = visual.find("quality")
    if quality is None:
        quality = ElementTree.SubElement(visual, "quality")
    quality.set("offsamples", "0")
    quality.set("shadowsize", "0")
    for light in root.iter("light"):
        light.set("castshadow", "false")
    for material in root.iterfind("asset/material"):
        material.set("reflectance", "0")


def only_seen(geom: ElementTree.Element) -> bool:
    """Whether nothing but a camera meets this geom."""
    return geom.get("group") == VISUAL_GROUP and geom.get("contype") == "0" and geom.get("conaffinity") == "0"


def cache_folders() -> tuple[Path, ...]:
    """Where the copies may lie on this machine, the best place first."""
    if os.environ.get("NEXTSTATE_CACHE"):
        return (Path(os.environ["NEXTSTATE_CACHE"]) / "meshes",)
    fallback = Path(tempfile.gettempdir()) / f"nextstate-{os.getuid()}"
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # this user has no home
        return (fallback,)
    return home / "nextstate" / "meshes", fallback


def decimated(file: str) -> Path:
    """The decimated copy of a mesh file (.obj or .stl), made if it is not there yet."""
    return made(Path(file), cache_folders(), f"{RULE} fast_simplification {fast_simplification.__version__}", ".stl")


def shrunk(file: str) -> Path:
    """The small copy of a texture file, made if it is not there yet."""
    return made(Path(file), cache_folders(), f"area {TEXTURE_SIZE}", ".png")


@cache
def made(source: Path, folders: tuple[Path, ...], recipe: str, suffix: str) -> Path:
    """Reduce `source` into the first folder that takes it, once a process; the result is whole or not there."""
    content = source.read_bytes()
    name = f"{source.stem}-{hashlib.sha256(recipe.encode() + content).hexdigest()[:24]}{suffix}"
    for folder in folders:
        if (folder / name).exists() and is_ours(folder):
            return folder / name
    reduced = stl_bytes(*simplify(*read_mesh(source))) if suffix == ".stl" else small_png(source)
    problems = []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not is_ours(folder):
                raise OSError(f"{folder} belongs to somebody else.")
            write_whole(folder / name, reduced)
        except OSError as error:
            problems.append(error)
            continue
        if problems:
            say_once(folders[0], folder)
        return folder / name
    raise OSError(f"{problems[0]} Set NEXTSTATE_CACHE to a writable folder.") from problems[0]


def is_ours(folder: Path) -> bool:
    """False for a folder that anybody may have made, in the place for temporary files, and somebody else did."""
    return folder.parent != Path(tempfile.gettempdir()) or folder.lstat().st_uid == os.getuid()


@cache
def say_once(wanted: Path, taken: Path) -> None:
    """Warn that the copies lie elsewhere; they are lost there when the machine restarts, and made again."""
    text = f"{wanted} cannot be written, so smaller meshes of the robot are kept in {taken}. NEXTSTATE_CACHE chooses."
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def small_png(source: Path) -> bytes:
    """An image file, averaged down to at most `TEXTURE_SIZE` pixels a side, as PNG."""
    image = cv2.imread(str(source), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{source} is not a whole image. Install it again.")
    height, width = (min(side, TEXTURE_SIZE) for side in image.shape[:2])
    return cv2.imencode(".png", cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))[1].tobytes()


def simplify(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """vertices (V, 3) f32, faces (F, 3) i32 -> the same shape in about 10 * sqrt(F) faces (quadric edge collapse)."""
    vertices, faces = weld(vertices, faces)
    budget = max(MIN_FACES, round(FACES_PER_ROOT * math.sqrt(len(faces))))
    if len(faces) <= budget:
        return vertices, faces
    fewer_vertices, fewer_faces = fast_simplification.simplify(vertices, faces, target_count=budget)
    return weld(np.asarray(fewer_vertices, np.float32), np.asarray(fewer_faces, np.int32))


def weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge vertices at the same place and drop the faces that this leaves without an area."""
    places = np.round(vertices / WELD).astype(np.int64)
    _, first, index = np.unique(places, axis=0, return_index=True, return_inverse=True)
    vertices, faces = vertices[first], index.reshape(-1)[faces].astype(np.int32)
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    flat = np.linalg.norm(np.cross(b - a, c - a), axis=1) < WELD**2
    return vertices, faces[~flat]


def read_mesh(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) f32 and triangles (F, 3) i32 of an .obj or a binary .stl file; normals and UVs are dropped."""
    readers = {".obj": read_obj, ".stl": read_stl}
    if file.suffix.lower() not in readers:
        raise ValueError(f"{file}: only .obj and binary .stl meshes can be decimated")
    vertices, faces = readers[file.suffix.lower()](file.read_bytes())
    if not len(faces) or not np.isfinite(vertices).all() or not 0 <= faces.min() <= faces.max() < len(vertices):
        raise ValueError(f"{file} is not a whole mesh: {len(vertices)} vertices, {len(faces)} faces. Install it again.")
    return vertices, faces


def read_obj(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Positions and faces; a polygon becomes a fan of triangles."""
    vertices, faces = [], []
    for line in content.decode().splitlines():
        key, *words = line.split() or [""]
        if key == "v":
            vertices.append([float(word) for word in words[:3]])
        elif key == "f":
            corner = [int(word.split("/")[0]) for word in words]
            corner = [i - 1 if i > 0 else len(vertices) + i for i in corner]  # negative: counted from the end
            faces += [(corner[0], corner[i], corner[i + 1]) for i in range(1, len(corner) - 1)]
    return np.array(vertices, np.float32).reshape(-1, 3), np.array(faces, np.int32).reshape(-1, 3)


def read_stl(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Binary STL: every face has corners of its own."""
    count = int.from_bytes(content[STL_HEADER : STL_HEADER + 4], "little")
    if len(content) != STL_HEADER + 4 + count * STL_FACE.itemsize:
        return np.empty((0, 3), np.float32), np.empty((0, 3), np.int32)  # text STL or truncated
    corners = np.frombuffer(content, STL_FACE, count, STL_HEADER + 4)["corners"]
    return corners.reshape(-1, 3).copy(), np.arange(3 * count, dtype=np.int32).reshape(-1, 3)


def stl_bytes(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    """Binary STL with zero normals, which readers compute from the corners."""
    records = np.zeros(len(faces), STL_FACE)
    records["corners"] = vertices[faces]
    return bytes(STL_HEADER) + len(faces).to_bytes(4, "little") + records.tobytes()
