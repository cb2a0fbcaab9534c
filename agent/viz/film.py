"""Pictures of a decision: the film of an episode, and the sheet of futures that were considered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

matplotlib.use("Agg")  # draws into files; a machine without a screen has no other way
import matplotlib.pyplot as plt  # noqa: E402

VIEW = 320  # pixels, height and width of each of the two views
HEADER, STRIP = 28, 132  # pixels, above and below the views
MARGIN = 10  # pixels around text
BACKGROUND, INK, FAINT = (18, 20, 24), (235, 235, 235), (130, 136, 145)
BAR, OWN, CHOSEN = (74, 90, 110), (92, 158, 214), (245, 166, 35)
OWN_ON_WHITE, CHOSEN_ON_WHITE = (30, 100, 160), (176, 98, 0)  # the same two, dark enough to be read as text


@dataclass(frozen=True)
class Moment:
    """What one frame of the film shows.

    real: (h, w, 3) u8, the camera.                 imagined: (h, w, 3) u8, or None before the first future is due.
    scores: (C,) of the candidates, row 0 the model's own chunk; chosen: row of the executed one, None without search.
    """

    real: np.ndarray
    imagined: np.ndarray | None
    instruction: str
    subtask: str
    step: int
    seconds: float
    scores: np.ndarray | None = None
    chosen: int | None = None
    success: bool = False
    imagined_label: str = "imagined 0.4 s ago"


def draw(moment: Moment) -> np.ndarray:
    """One frame of the film, (HEADER + VIEW + STRIP, 2 VIEW, 3) u8."""
    canvas = Image.new("RGB", (2 * VIEW, HEADER + VIEW + STRIP), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    text, small = ImageFont.load_default(15), ImageFont.load_default(12)
    pen.text((MARGIN, 6), "camera", INK, text)
    pen.text((VIEW + MARGIN, 6), moment.imagined_label, INK, text)
    canvas.paste(_square(moment.real), (0, HEADER))
    if moment.imagined is None:
        pen.text((VIEW + VIEW // 2, HEADER + VIEW // 2), "nothing imagined yet", FAINT, text, anchor="mm")
    else:
        canvas.paste(_square(moment.imagined), (VIEW, HEADER))
        pen.line((VIEW, HEADER, VIEW, HEADER + VIEW), BACKGROUND, width=2)  # two pictures, not one

    top, width = HEADER + VIEW, VIEW - 2 * MARGIN
    pen.text((MARGIN, top + 8), _fitting(moment.instruction, text, width), INK, text)
    state = "done" if moment.success else _fitting(moment.subtask, small, width)
    pen.text((MARGIN, top + 34), state, CHOSEN if moment.success else FAINT, small)
    pen.text((MARGIN, top + 56), f"step {moment.step}   {moment.seconds:.1f} s", FAINT, small)
    if moment.scores is not None and len(moment.scores) and np.isfinite(moment.scores).all():
        value = float(moment.scores[moment.chosen])
        pen.text((MARGIN, top + STRIP - 22), f"value of the chosen future {value:.2f}", CHOSEN, small)
        _bars(pen, moment.scores, moment.chosen, (VIEW + MARGIN, top + 10, 2 * VIEW - MARGIN, top + STRIP - 44))
        ends = f"from {moment.scores.max():.2f} to {moment.scores.min():.2f}"
        pen.text((VIEW + MARGIN, top + STRIP - 40), f"{len(moment.scores)} futures, values {ends}", FAINT, small)
        x = VIEW + MARGIN
        for colour, name in _legend(moment.chosen):
            pen.rectangle((x, top + STRIP - 18, x + 8, top + STRIP - 10), fill=colour)
            pen.text((x + 13, top + STRIP - 22), name, FAINT, small)
            x += 30 + int(small.getlength(name))
    return np.asarray(canvas)


def _legend(chosen: int) -> list[tuple[tuple[int, int, int], str]]:
    """What the colours of bars mean; the model's own chunk is row 0, and has no bar of its own where it is chosen."""
    return [(CHOSEN, "chosen, as without search")] if chosen == 0 else [(CHOSEN, "chosen"), (OWN, "without search")]


def _fitting(words: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The words, cut where they would run into what stands beside them."""
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(words + " ...") > width:
        words = words[:-1]
    return words.rstrip() + " ..."


def _square(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image)).resize((VIEW, VIEW), Image.Resampling.BICUBIC)


def _bars(pen: ImageDraw.ImageDraw, scores: np.ndarray, chosen: int, box: tuple[int, int, int, int]) -> None:
    """The candidates as bars from best to worst; heights over the spread of the scores, so that choices show."""
    left, top, right, bottom = box
    low, high = float(scores.min()), float(scores.max())
    spread = max(high - low, 0.02)  # below this the candidates are as good as equal, and should look it
    width = min((right - left) / len(scores), 24)
    for place, row in enumerate(np.argsort(-scores, kind="stable")):
        height = (bottom - top) * (0.15 + 0.85 * (spread - (high - float(scores[row]))) / spread)
        x = left + place * width
        colour = CHOSEN if row == chosen else OWN if row == 0 else BAR
        pen.rectangle((x, bottom - height, x + max(width - 2, 1), bottom), fill=colour)


class Film:
    """An open film: `add` frames one at a time."""

    def __init__(self, container: av.container.OutputContainer, fps: int) -> None:
        self._container, self._fps, self._stream = container, fps, None

    def add(self, frame: np.ndarray) -> None:
        """frame: (h, w, 3) u8, h and w even and the same for every frame."""
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._fps)
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = "yuv420p"  # what browsers and phones play
            self._stream.options = {"crf": "20", "preset": "veryfast"}
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def finish(self) -> None:
        """Write what the encoder still holds."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())


@contextmanager
def film(path: Path, fps: int = 20) -> Iterator[Film]:
    """An H.264 film at `path`, whole when the block ends; a film that failed leaves nothing under that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with av.open(str(partial), "w") as container:
            open_film = Film(container, fps)
            yield open_film
            open_film.finish()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Future:
    """One candidate of a decision. imagined, true: (h, w, 3) u8, the frame after its whole chunk; true may be None."""

    score: float
    imagined: np.ndarray
    true: np.ndarray | None
    chosen: bool = False
    own: bool = False  # the model's likeliest chunk


def sheet(path: Path, now: np.ndarray, futures: Sequence[Future], title: str, columns: int = 4) -> None:
    """Write one decision as a grid: what the camera sees, then each future, best first, imagined beside true."""
    futures = sorted(futures, key=lambda future: -future.score)
    cells = 1 + len(futures)
    rows = -(-cells // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.1 * columns, 1.95 * rows + 0.6), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    axes.flat[0].imshow(now, interpolation="bicubic")
    axes.flat[0].set_title("now", fontsize=9)
    for axis, future in zip(axes.flat[1:], futures, strict=False):
        true = np.full_like(future.imagined, 255) if future.true is None else _fit(future.true, future.imagined)
        gap = np.full((len(true), 2, 3), 255, np.uint8)
        axis.imshow(np.concatenate([future.imagined, gap, true], axis=1), interpolation="bicubic")
        name, colour = "", (0, 0, 0)
        if future.own:
            name, colour = "without search", OWN_ON_WHITE
        if future.chosen:
            name, colour = f"chosen{', as ' * future.own}{name}", CHOSEN_ON_WHITE
        style = {"color": [c / 255 for c in colour], "fontweight": "bold" if name else "normal", "fontsize": 9}
        axis.set_title(f"{future.score:.3f}  {name}".rstrip(), **style)
    explained = "each future: its value; imagined (left), what the simulator makes of the same actions (right)"
    figure.suptitle(f"{title}\n{explained}", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _fit(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(like.shape[1::-1], Image.Resampling.BOX))
