"""Frames as video files, and back: one episode's frames are decoded when it is read, and nothing else of the file.

Lossy: H.264 with the chroma at half the resolution (yuv420p), which every decoder takes. Every second frame stands for
itself (`GOP`), as LeRobot writes them, so that a frame is found quickly; there are no frames that need later ones.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from envs.data.store import EpisodeError

ENCODER, CODEC, PIXELS = "libx264", "h264", "yuv420p"
GOP = 2
TOLERANCE_S = 1e-3  # a frame may be this far from its place in time; LeRobot's own reader allows 1e-4 of its clock
# names of encoders and decoders, as they stand in data sets, to the one that ffmpeg calls canonical
CANONICAL = {
    "libx264": "h264", "h264_nvenc": "h264", "libx265": "hevc", "h265": "hevc", "libsvtav1": "av1",
    "libaom-av1": "av1", "libdav1d": "av1",
}  # fmt: skip


def rate(hz: float) -> Fraction:
    """A control rate as videos keep it."""
    return Fraction(hz).limit_denominator(100_000)


def encode(frames: np.ndarray, hz: float, crf: int) -> bytes:
    """An mp4 of frames (T, h, w, 3) u8, frame i at i / hz seconds. crf: 0 (best) to 51. ValueError for odd sizes."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"a video needs even sizes, got {height} x {width}: write pictures instead, images=png")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"g": str(GOP), "crf": str(crf), "bf": "0"}
        stream = container.add_stream(ENCODER, rate(hz), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, PIXELS
        stream.codec_context.thread_count = 1  # the same frames make the same bytes
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = i, 1 / rate(hz)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode(path: Path, count: int, hz: float, start_s: float, size: tuple[int, int], codec: str | None) -> np.ndarray:
    """(count, h, w, 3) u8, the frames at start_s, start_s + 1 / hz and so on.

    size: (h, w) that is wanted; codec: the one that the data set names, if it does. EpisodeError names the file where
    it is missing, cannot be decoded, is of another size or codec, or has no frame at one of these times.
    """
    frames, found, named, error = _decode(path, count, hz, start_s, size)
    if codec is not None and CANONICAL.get(codec, codec) != named:
        raise EpisodeError(f"{path} is of the codec {named}, and not of {codec} as `video.codec` says")
    if error is not None:
        raise EpisodeError(f"{path} cannot be decoded ({str(error).splitlines()[0]})") from error
    if not found.all():
        first = int(np.argmin(found))
        raise EpisodeError(
            f"{path} has no frame at {start_s + first / hz:.3f} s: {int(found.sum())} of the {count} frames that the "
            "data set tells of are there"
        )
    return frames


def decode_beginning(
    path: Path, count: int, hz: float, start_s: float, size: tuple[int, int]
) -> tuple[np.ndarray, str]:
    """The frames up to the first of `count` that is missing or damaged, and the codec. EpisodeError where the file is
    missing, no video, or of another size."""
    frames, found, named, _ = _decode(path, count, hz, start_s, size)
    return frames[: count if found.all() else int(np.argmin(found))], named


def _decode(
    path: Path, count: int, hz: float, start_s: float, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, str, Exception | None]:
    """Frames, which of them were found, the codec, and what ended the decoding before its end."""
    if not path.is_file():
        raise EpisodeError(f"the video {path} is missing")
    frames, found, ended = np.empty((count, *size, 3), np.uint8), np.zeros(count, bool), None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise EpisodeError(f"{path} has no video in it")
            stream = container.streams.video[0]
            if (stream.height, stream.width) != size:
                shown = f"{stream.height} x {stream.width}"
                raise EpisodeError(f"{path} shows {shown} pixels, and not {size[0]} x {size[1]} as `shape` says")
            named = stream.codec.canonical_name
            try:
                if start_s > 0 and stream.time_base is not None:
                    container.seek(int((start_s - TOLERANCE_S) / stream.time_base), stream=stream)
                for frame in container.decode(stream):
                    index = count if frame.time is None else round((frame.time - start_s) * hz)
                    if index >= count:
                        break
                    if index >= 0 and abs(frame.time - start_s - index / hz) <= TOLERANCE_S:
                        frames[index], found[index] = frame.to_ndarray(format="rgb24"), True
            except (av.error.FFmpegError, ValueError) as error:
                ended = error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise EpisodeError(f"{path} cannot be opened as a video ({str(error).splitlines()[0]})") from error
    return frames, found, named, ended
