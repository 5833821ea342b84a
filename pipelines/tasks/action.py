"""Action recognition: clips of frames, at the rate that the model was trained for → the likeliest classes.

Clips slide over the medium's frames: `clip_length` frames each, `clip_stride` from one to the next. A frame
is prepared once, however many clips it is in. Rows of the answer are clips.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.frames.batch import FrameBatch
from pipelines.frames.geometry import View
from pipelines.models.outputs import Output
from pipelines.models.spec import Clip, ModelSpec
from pipelines.protocol.answers import ActionAnswer, Floats
from pipelines.protocol.columns import Column
from pipelines.protocol.errors import InvalidOptions
from pipelines.protocol.options import Options, Tail
from pipelines.rendering.annotate import draw_caption
from pipelines.rendering.encode import PictureWriter
from pipelines.rendering.postprocess import Postprocessor
from pipelines.tasks.job import Task
from pipelines.tasks.ranking import Ranking, Ranks, probabilities

# A model's clips may be longer than those that it was trained with by this factor, and faster: what frames
# cost in memory and time grows with both.
LONGEST = 8
FASTEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A clip's first and last frame: their numbers and times, and the last one's place in its chunk.

    Attributes:
        stretch: of the first frame.
        damaged: whether any of its frames is.
    """

    first_index: int
    first_pts_s: float
    last_index: int
    last_pts_s: float
    last_place: int
    stretch: int
    damaged: bool


# A frame's number, time and stretch, and whether it is damaged.
Row = tuple[int, float, int, bool]


class Window:
    """Frames in, clips out: holds those that later clips still need. Clips reach over breaks of the clock."""

    def __init__(self, length: int, stride: int, tail: Tail) -> None:
        self._length, self._stride, self._tail = length, stride, tail
        self._pixels: Tensor | None = None
        self._rows: list[Row] = []
        self._skip = 0  # frames between two clips, where the stride is longer than a clip
        self._uncovered = 0  # frames at the end that no clip has held

    def add(self, pixels_nchw: Tensor, frames: FrameBatch) -> tuple[Tensor | None, list[Span]]:
        """The clips `(C, 3, T, h, w)` that N more frames complete: a view of the frames, not a copy."""
        held = len(self._rows)
        skipped = min(self._skip, len(frames))
        self._skip -= skipped
        kept = pixels_nchw[skipped:]
        pixels = kept if self._pixels is None else torch.cat([self._pixels, kept])
        columns = (frames.frame_index, frames.pts_s, frames.stretch, frames.damaged)
        rows = self._rows + list(zip(*(column[skipped:].tolist() for column in columns), strict=True))
        count = max(0, (len(rows) - self._length) // self._stride + 1)
        ends = [clip * self._stride + self._length for clip in range(count)]
        spans = [_span(rows[end - self._length : end], skipped + end - 1 - held) for end in ends]
        clips = self._clips(pixels) if count else None
        self._keep(pixels, rows, done=count * self._stride)
        self._uncovered = len(rows) - ends[-1] if ends else self._uncovered + len(frames) - skipped
        return clips, spans

    def rest(self) -> tuple[Tensor | None, list[Span]]:
        """A last clip of the frames that no clip has held, if there are any and the tail is not dropped."""
        if self._tail == "drop" or not self._uncovered or self._pixels is None:
            return None, []
        count = len(self._rows)
        places = torch.arange(self._length)
        places = places % count if self._tail == "repeat" else places.clamp(max=count - 1)
        return self._clips(self._pixels[places.to(self._pixels.device)]), [_span(self._rows, -1)]

    def _clips(self, pixels_nchw: Tensor) -> Tensor:
        return pixels_nchw.unfold(0, self._length, self._stride).permute(0, 1, 4, 2, 3)

    def _keep(self, pixels: Tensor, rows: list[Row], done: int) -> None:
        self._skip += max(0, done - len(rows))
        self._pixels = pixels[done:] if done < len(rows) else None
        self._rows = rows[done:]


def _span(rows: Sequence[Row], last_place: int) -> Span:
    first, last = rows[0], rows[-1]
    return Span(
        first_index=first[0],
        first_pts_s=first[1],
        last_index=last[0],
        last_pts_s=last[1],
        last_place=last_place,
        stretch=first[2],
        damaged=any(row[3] for row in rows),
    )


class Action:
    """One medium's job."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        clip = _clip(spec)
        length = options.clip_length or clip.length
        if clip.fixed and length != clip.length:
            raise InvalidOptions(
                f"clip_length={length}: {spec.name} takes clips of {clip.length} frames", hint="leave it out"
            )
        if length > LONGEST * clip.length:
            raise InvalidOptions(
                f"clip_length={length} is over {LONGEST} times the model's {clip.length}",
                hint=f"at most {LONGEST * clip.length}",
            )
        self._spec = spec
        self._window = Window(length, options.clip_stride or length, options.tail)
        self._ranking = Ranking(spec.labels, options.top_k)
        self._writer = PictureWriter(options.overlay)
        self._plain = options.alpha == 0
        self._spans: deque[list[Span]] = deque()
        self._size = (0, 0)
        self._last_frame: npt.NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)
        self._caption: list[str] = []

    def inputs(self, pixels_nchw: Tensor, frames: FrameBatch) -> Tensor | None:
        clips, spans = self._window.add(pixels_nchw, frames)
        self._spans.append(spans)
        return clips

    def rest(self) -> Tensor | None:
        clips, spans = self._window.rest()
        if clips is not None:
            self._spans.append(spans)
        return clips

    def read(self, output: Output) -> Floats:
        return probabilities(output, self._spec)

    def complete(
        self, frames: FrameBatch | None, parts: Sequence[Floats], views: Sequence[View]
    ) -> tuple[Sequence[Floats], Sequence[View]]:
        return parts, views

    def answer(
        self,
        frames: FrameBatch | None,
        parts: Sequence[Floats],
        views: Sequence[View],
        postprocessor: Postprocessor,
        *,
        final: bool,
    ) -> ActionAnswer:
        spans = self._spans.popleft() if self._spans else []
        ranks = self._ranking.add(parts)
        if frames is not None:
            self._size = frames.size_hw
        overlay, video = self._pictures(frames, spans, ranks, postprocessor, final=final)
        mean = self._ranking.mean
        return ActionAnswer(
            frame_index=np.array([span.first_index for span in spans], np.int64),
            pts_s=np.array([span.first_pts_s for span in spans], np.float64),
            last_frame_index=np.array([span.last_index for span in spans], np.int64),
            last_pts_s=np.array([span.last_pts_s for span in spans], np.float64),
            stretch=np.array([span.stretch for span in spans], np.int64),
            damaged=np.array([span.damaged for span in spans], np.uint8),
            size=np.array(self._size, np.int64),
            not_finite=ranks.not_finite.astype(np.uint8),
            class_id=ranks.class_id,
            class_name=ranks.class_name,
            probability=ranks.probability,
            mean_class_id=mean.class_id[0],
            mean_class_name=tuple(mean.class_name[0]),
            mean_probability=mean.probability[0],
            overlay=overlay,
            video=video,
            final=final,
        )

    def _pictures(
        self,
        frames: FrameBatch | None,
        spans: Sequence[Span],
        ranks: Ranks,
        postprocessor: Postprocessor,
        *,
        final: bool,
    ) -> tuple[list[bytes], bytes]:
        """The last frame of each clip; for a video all frames, captioned by the last clip that has ended."""
        if not self._writer.wanted:
            return [], b""
        shown = [] if frames is None else list(postprocessor.on_host(frames.pixels_nhwc))
        if shown:
            self._last_frame = np.array(shown[-1])
        captions = {
            span.last_place: [] if self._plain else ranks.captions(row) for row, span in enumerate(spans)
        }
        clips = [
            draw_caption(shown[place] if place >= 0 else self._last_frame, lines)
            for place, lines in captions.items()
        ]
        overlay = self._writer.pictures(np.stack(clips)) if clips else []
        film = b"" if frames is None else self._film(shown, frames, captions)
        return overlay, film + (self._writer.close() if final else b"")

    def _film(
        self, shown: Sequence[npt.NDArray[np.uint8]], frames: FrameBatch, captions: Mapping[int, list[str]]
    ) -> bytes:
        if not self._writer.is_film:
            return b""
        drawn = []
        for place, pixels in enumerate(shown):
            self._caption = captions.get(place, self._caption)
            drawn.append(draw_caption(pixels, self._caption))
        return self._writer.film(np.stack(drawn), frames.played_s)


def _clip(spec: ModelSpec) -> Clip:
    assert spec.clip is not None
    return spec.clip


def _select(spec: ModelSpec, options: Options) -> Options:
    """Frames at the rate that the model was trained for, unless the request says another."""
    rate = _clip(spec).fps
    if options.fps > FASTEST * rate:
        raise InvalidOptions(
            f"fps={options.fps:g} is over {FASTEST} times the model's {rate:g}",
            hint=f"at most {FASTEST * rate:g}",
        )
    return options if options.fps else dataclasses.replace(options, fps=rate)


TASK = Task(
    answer=ActionAnswer,
    options=(
        *("start_s", "end_s", "fps", "max_frames", "damaged", "decoder", "base64"),
        "deadline_ms",
        *("clip_length", "clip_stride", "tail", "top_k", "overlay", "alpha"),
    ),
    job=Action,
    model_inputs=(
        Column(name="pixels", dtype=np.float32, dims=(3, "T", "h", "w"), help="one clip's model pixels"),
    ),
    model_outputs=(Column(name="logits", dtype=np.float32, dims=("K",), help="scores of the K classes"),),
    select=_select,
    repeat_frames=True,
)
