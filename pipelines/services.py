"""The endpoints of a segmentation pipeline: end to end, its stages alone, and the seed example's contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from pipelines.contract import COMMON_COLUMNS, Column, Options, Scalar, Tensor, text_column
from pipelines.decode import open_media
from pipelines.endpoints import Endpoint, Row
from pipelines.errors import InvalidMedia, InvalidOptions, TooLarge
from pipelines.frames import to_numpy
from pipelines.pipeline import Pipeline
from pipelines.postprocess import ClassScores, RenderStyle
from pipelines.preprocess import geometry
from pipelines.results import SegmentationAnswer
from pipelines.tasks.segmentation import Segmentation

SELECTION = ("start_s", "end_s", "stride", "max_frames", "decoder", "base64")
ERROR = COMMON_COLUMNS[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointFacts:
    """What an endpoint looks like from outside."""

    help: str
    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]
    allowed: tuple[str, ...] = ()
    preset: Mapping[str, Scalar] = field(default_factory=dict)
    stream: bool = False


PIXELS = Column(name="pixels", dtype=np.float32, dims=(3, "h", "w"), help="one frame's model pixels")
LOGITS = Column(name="logits", dtype=np.float32, dims=("K", "h", "w"), help="scores of the K classes")
FRAME = Column(name="frame", dtype=np.uint8, dims=("H", "W", 3), help="one frame, RGB")
PROBABILITY = Column(name="probability", dtype=np.float32, dims=("h", "w"), help="probability of one class")
SEGMENTED = Column(
    name="segmented", dtype=np.uint8, dims=("H", "W", 3), help="the picture that `style` asks for"
)
CLASS_MASK = Column(name="mask", dtype=np.uint8, dims=("H", "W"), help="1 where the class is")
ORIGINAL = Column(name="original", dtype=np.uint8, dims=("F", "H", "W", "C"), help="the decoded frames, RGB")
FRAMES_SEGMENTED = Column(
    name="segmented", dtype=np.uint8, dims=("F", "H", "W", "C"), help="the same, black outside the class"
)
PREPROCESSED = (
    Column(name="pixels", dtype=np.float32, dims=("N", 3, "h", "w"), help="model pixels"),
    Column(name="frame_index", dtype=np.int64, dims=("N",), help="number of the frame in its medium, from 0"),
    Column(name="pts_s", dtype=np.float64, dims=("N",), help="its presentation time in seconds"),
    *COMMON_COLUMNS,
)
MEDIA = Column(name="media", dtype=object, dims=(1,), help="the encoded video or image, as the file is")
VIDEO = Column(name="video", dtype=np.uint8, dims=("bytes",), help="the encoded video")

ENDPOINT_TABLE: dict[str, EndpointFacts] = {
    "segmentation": EndpointFacts(
        help="a clip or an image, end to end, in one answer",
        inputs=(MEDIA,),
        outputs=Segmentation.columns,
        allowed=Segmentation.options,
    ),
    "segmentation_stream": EndpointFacts(
        help="a medium of any length, an answer per chunk of frames",
        inputs=(MEDIA,),
        outputs=Segmentation.columns,
        allowed=Segmentation.options,
        stream=True,
    ),
    "dali_preprocess": EndpointFacts(
        help="decoding and the model's preprocessing alone",
        inputs=(MEDIA,),
        outputs=PREPROCESSED,
        allowed=SELECTION,
    ),
    "torch_segmentation": EndpointFacts(
        help="the model alone: a row is a frame of model pixels", inputs=(PIXELS,), outputs=(LOGITS, ERROR)
    ),
    "dali_postprocess": EndpointFacts(
        help="the postprocessing of one class alone: a row is a frame",
        inputs=(FRAME, PROBABILITY),
        outputs=(SEGMENTED, CLASS_MASK, ERROR),
        allowed=("score_threshold", "style", "alpha", "outline_px", "background"),
        preset={"style": "extract"},
    ),
    "ResNet101": EndpointFacts(
        help="the contract of PyTriton's DALI example: raw frames, and the same with one class alone",
        inputs=(VIDEO,),
        outputs=(ORIGINAL, FRAMES_SEGMENTED, ERROR),
        allowed=("class_name", "class_id", "score_threshold", "max_frames"),
    ),
}


def segmentation_endpoints(pipeline: Pipeline, max_answer_bytes: int) -> list[Endpoint]:
    """The endpoints of ENDPOINT_TABLE over one pipeline."""
    end_to_end, bare = _EndToEnd(pipeline, max_answer_bytes), _BareStages(pipeline, max_answer_bytes)
    answers: dict[str, Callable[[Row, Options], Iterator[Row]]] = {
        "segmentation": end_to_end.unary,
        "segmentation_stream": end_to_end.stream,
        "dali_preprocess": bare.preprocess,
        "torch_segmentation": bare.infer,
        "dali_postprocess": bare.postprocess,
        "ResNet101": end_to_end.example,
    }
    return [
        Endpoint(
            name=name,
            inputs=facts.inputs,
            outputs=facts.outputs,
            answer=answers[name],
            telemetry=pipeline.telemetry,
            max_answer_bytes=max_answer_bytes,
            allowed=facts.allowed,
            preset=facts.preset,
            stream=facts.stream,
        )
        for name, facts in ENDPOINT_TABLE.items()
    ]


class _EndToEnd:
    """Media in, answers out: as one answer, as a stream, and in the seed example's form."""

    def __init__(self, pipeline: Pipeline, max_answer_bytes: int) -> None:
        self._pipeline = pipeline
        self._max_answer_bytes = max_answer_bytes
        self._unbounded = dataclasses.replace(pipeline.limits, max_frames=None)

    def unary(self, inputs: Row, options: Options) -> Iterator[Row]:
        parts, size = [], 0
        for part in self._pipeline.run(bytes(inputs["media"][0]), options):
            parts.append(part)
            size += part.nbytes
            _check_size(size, self._max_answer_bytes, part.frame_index[-1] if len(part) else 0)
        yield SegmentationAnswer.concatenate(parts).to_columns()

    def stream(self, inputs: Row, options: Options) -> Iterator[Row]:
        for part in self._pipeline.run(bytes(inputs["media"][0]), options, self._unbounded):
            yield part.to_columns()

    def example(self, inputs: Row, options: Options) -> Iterator[Row]:
        """The frames and the class alone, as raw pixels: background unless a class is named, as in the seed."""
        if not options.class_name and options.class_id < 0:
            options = dataclasses.replace(options, class_id=0)
        options = dataclasses.replace(options, overlay="raw", style="extract", mask="none")
        media = inputs["video"].tobytes()
        originals, segmented, size = [], [], 0
        for frames, answer in self._pipeline.run_with_frames(media, options):
            if frames is None:
                raise InvalidMedia("the video has no frame")
            originals.append(to_numpy(frames.pixels_nhwc))
            segmented.append(np.frombuffer(b"".join(answer.overlay), np.uint8).reshape(originals[-1].shape))
            size += 2 * answer.nbytes
            _check_size(size, self._max_answer_bytes, answer.frame_index[-1])
        yield {
            "original": np.concatenate(originals),
            "segmented": np.concatenate(segmented),
            "error": text_column(""),
        }


def _check_size(size_bytes: int, limit_bytes: int, frame_index: int) -> None:
    """Raise TooLarge as soon as an answer that is being gathered passes the limit."""
    if size_bytes > limit_bytes:
        raise TooLarge(
            f"the answer passes the server's limit of {limit_bytes >> 20} MiB at frame {frame_index}",
            hint="use segmentation_stream, max_frames or stride, or jpeg, mp4 or rle instead of raw",
        )


class _BareStages:
    """One stage of the chain at a time, for clients that bring their own other stages."""

    def __init__(self, pipeline: Pipeline, max_answer_bytes: int) -> None:
        self._pipeline = pipeline
        self._max_answer_bytes = max_answer_bytes

    def preprocess(self, inputs: Row, options: Options) -> Iterator[Row]:
        pipeline = self._pipeline
        numbers: list[Tensor] = []
        times: list[Tensor] = []
        pixels: list[Tensor] = []
        with open_media(
            bytes(inputs["media"][0]), options=options, limits=pipeline.limits, device=pipeline.device
        ) as medium:
            for frames in medium.chunks():
                with pipeline.stages.lend() as stages:
                    pixels.append(stages.preprocess(frames.pixels_nhwc).cpu().numpy())
                numbers.append(frames.frame_index)
                times.append(frames.pts_s)
                _check_size(
                    sum(part.nbytes for part in pixels), self._max_answer_bytes, frames.frame_index[-1]
                )
        if not numbers:
            raise InvalidOptions("start_s, end_s, stride and max_frames select no frame")
        yield {
            "pixels": np.concatenate(pixels),
            "frame_index": np.concatenate(numbers),
            "pts_s": np.concatenate(times),
            "count": np.array([sum(map(len, numbers))], np.int64),
            "decoder": text_column(medium.decoder),
            "decoder_reason": text_column(medium.decoder_reason),
            "final": np.array([1], np.uint8),
            "error": text_column(""),
        }

    def infer(self, inputs: Row, _options: Options) -> Iterator[Row]:
        engine = self._pipeline.engine
        pixels_nchw = torch.from_numpy(inputs["pixels"])[None].to(engine.model.device)
        (logits,) = engine.submit(pixels_nchw, lambda logits_nkhw: logits_nkhw.cpu().numpy().copy()).result()
        yield {"logits": logits[0], "error": text_column("")}

    def postprocess(self, inputs: Row, options: Options) -> Iterator[Row]:
        frame, probability = inputs["frame"], inputs["probability"]
        device = self._pipeline.device
        scores = ClassScores(
            probability_nhw=torch.from_numpy(probability)[None].to(device),
            class_id=1,
            threshold=0.5 if options.score_threshold < 0 else options.score_threshold,
        )
        size = (probability.shape[0], probability.shape[1])
        whole = dataclasses.replace(self._pipeline.preprocessing, resize_px=size, crop_px=None)
        shape = geometry(whole, frame.shape[0], frame.shape[1])
        style = RenderStyle.of(options)
        with self._pipeline.stages.lend() as stages:
            rendered = stages.postprocess(
                torch.from_numpy(frame)[None].to(device).numpy(), scores, shape, style
            )
        assert rendered.pixels_nhwc is not None
        yield {
            "segmented": np.asarray(rendered.pixels_nhwc[0]),
            "mask": rendered.class_map_nhw[0],
            "error": text_column(""),
        }
