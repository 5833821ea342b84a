"""The endpoints of the served models: end to end, their stages alone, and the seed example's contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from model_inference import BoxOutput, LogitOutput, Output, OutputFacts, TaskName
from pipelines.contract import COMMON_COLUMNS, Column, Options, Scalar, Tensor, text_column
from pipelines.decode import open_media
from pipelines.endpoints import Endpoint, Row
from pipelines.errors import InvalidMedia, InvalidOptions, TooLarge
from pipelines.frames import to_numpy
from pipelines.pipeline import Pipeline
from pipelines.postprocess import ClassScores, RenderStyle
from pipelines.preprocess import geometry
from pipelines.results import answer_columns
from pipelines.tasks import TASKS
from pipelines.tasks.job import SELECTION, Task

ERROR = COMMON_COLUMNS[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointFacts:
    """What an endpoint looks like from outside; `task` is the one that it needs a model of, if any."""

    help: str
    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]
    task: TaskName | None = None
    allowed: tuple[str, ...] = ()
    preset: Mapping[str, Scalar] = field(default_factory=dict)
    stream: bool = False


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


def _task_endpoints(name: TaskName, task: Task) -> dict[str, EndpointFacts]:
    """What every task has: media in one answer, media as a stream, and the model alone."""
    columns = answer_columns(task.answer)
    one = EndpointFacts(
        help=f"{name} of a clip or an image, end to end, in one answer",
        inputs=(MEDIA,),
        outputs=columns,
        task=name,
        allowed=task.options,
    )
    many = dataclasses.replace(
        one, help=f"{name} of a medium of any length, an answer per chunk of frames", stream=True
    )
    bare = EndpointFacts(
        help=f"the model of {name} alone: a row is what it takes of model pixels",
        inputs=task.inputs,
        outputs=(*task.outputs, ERROR),
        task=name,
    )
    return {name: one, f"{name}_stream": many, f"torch_{name}": bare}


ENDPOINT_TABLE: dict[str, EndpointFacts] = {
    **{key: facts for name, task in TASKS.items() for key, facts in _task_endpoints(name, task).items()},
    "dali_preprocess": EndpointFacts(
        help="decoding and a model's preprocessing alone",
        inputs=(MEDIA,),
        outputs=PREPROCESSED,
        allowed=("task", *SELECTION),
    ),
    "dali_postprocess": EndpointFacts(
        help="the postprocessing of one class alone: a row is a frame",
        inputs=(FRAME, PROBABILITY),
        outputs=(SEGMENTED, CLASS_MASK, ERROR),
        task="segmentation",
        allowed=("score_threshold", "style", "alpha", "outline_px", "background"),
        preset={"style": "extract"},
    ),
    "ResNet101": EndpointFacts(
        help="the contract of PyTriton's DALI example: raw frames, and the same with one class alone",
        inputs=(VIDEO,),
        outputs=(ORIGINAL, FRAMES_SEGMENTED, ERROR),
        task="segmentation",
        allowed=("class_name", "class_id", "score_threshold", "max_frames"),
    ),
}

Answering = Callable[[Row, Options], Iterator[Row]]


def model_endpoints(pipelines: Mapping[TaskName, Pipeline], max_answer_bytes: int) -> list[Endpoint]:
    """Those of ENDPOINT_TABLE that the served models can answer."""
    answers: dict[str, Answering] = {"dali_preprocess": _Preprocess(pipelines, max_answer_bytes).answer}
    outputs: dict[str, tuple[Column, ...]] = {}
    for name, pipeline in pipelines.items():
        whole, bare = _EndToEnd(pipeline, max_answer_bytes), _BareModel(pipeline)
        answers |= {name: whole.unary, f"{name}_stream": whole.stream, f"torch_{name}": bare.answer}
        outputs[f"torch_{name}"] = (*bare.outputs, ERROR)
    if "segmentation" in pipelines:
        pipeline = pipelines["segmentation"]
        answers["dali_postprocess"] = _BarePostprocess(pipeline).answer
        answers["ResNet101"] = _Example(pipeline, max_answer_bytes).answer
    telemetry = next(iter(pipelines.values())).telemetry
    return [
        Endpoint(
            name=name,
            inputs=facts.inputs,
            outputs=outputs.get(name, facts.outputs),
            answer=answers[name],
            telemetry=telemetry,
            max_answer_bytes=max_answer_bytes,
            allowed=facts.allowed,
            preset=facts.preset,
            stream=facts.stream,
        )
        for name, facts in ENDPOINT_TABLE.items()
        if name in answers
    ]


class _EndToEnd:
    """Media in, answers out: as one answer, or as a stream of them."""

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
        yield self._pipeline.task.answer.concatenate(parts).to_columns()

    def stream(self, inputs: Row, options: Options) -> Iterator[Row]:
        for part in self._pipeline.run(bytes(inputs["media"][0]), options, self._unbounded):
            yield part.to_columns()


class _Example:
    """The seed example's form: frames and the class alone, as raw pixels."""

    def __init__(self, pipeline: Pipeline, max_answer_bytes: int) -> None:
        self._pipeline = pipeline
        self._max_answer_bytes = max_answer_bytes

    def answer(self, inputs: Row, options: Options) -> Iterator[Row]:
        """Background unless a class is named, as in the seed."""
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
            hint="use the stream endpoint, max_frames or stride, or jpeg, mp4 or rle instead of raw",
        )


class _Preprocess:
    """Decoding and one model's preprocessing, for clients that bring their own other stages."""

    def __init__(self, pipelines: Mapping[TaskName, Pipeline], max_answer_bytes: int) -> None:
        self._pipelines = pipelines
        self._max_answer_bytes = max_answer_bytes

    def answer(self, inputs: Row, options: Options) -> Iterator[Row]:
        pipeline = self._pipeline(options.task)
        numbers: list[Tensor] = []
        times: list[Tensor] = []
        pixels: list[Tensor] = []
        with open_media(
            bytes(inputs["media"][0]), options=options, limits=pipeline.limits, device=pipeline.device
        ) as medium:
            for frames in medium.chunks():
                pixels.append(pipeline.prepare(frames).cpu().numpy())
                numbers.append(frames.frame_index)
                times.append(frames.pts_s)
                size = sum(part.nbytes for part in pixels)
                _check_size(size, self._max_answer_bytes, frames.frame_index[-1])
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

    def _pipeline(self, task: str) -> Pipeline:
        if not task:
            return next(iter(self._pipelines.values()))
        found = next((pipeline for name, pipeline in self._pipelines.items() if name == task), None)
        if found is None:
            raise InvalidOptions(f"task={task!r} is not served", hint=f"one of: {', '.join(self._pipelines)}")
        return found


class _BareModel:
    """The model alone: a row of model pixels in, its outputs out, by the names that it gives them."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._engine = pipeline.engine
        self._known = {column.name: column for column in pipeline.task.outputs}
        self.outputs = tuple(self._column(facts) for facts in self._engine.model.outputs)
        if pipeline.spec.task == "detection":
            self.outputs += (self._known["box_count"],)

    def answer(self, inputs: Row, _options: Options) -> Iterator[Row]:
        pixels = torch.from_numpy(inputs["pixels"])[None].to(self._engine.model.device)
        (row,) = self._engine.submit(pixels, _to_row).result()
        yield {**row, "error": text_column("")}

    def _column(self, facts: OutputFacts) -> Column:
        """An output as the first pass has shown it, with the words of the task's own table where it has any."""
        known = self._known.get(facts.name)
        varying = known.dims if known else tuple(f"n{place}" for place in range(len(facts.dims)))
        dims = tuple(name if size is None else size for name, size in zip(varying, facts.dims, strict=True))
        dtype = np.int64 if not facts.dtype.is_floating_point else np.float32
        return Column(
            name=facts.name, dtype=dtype, dims=dims, help=known.help if known else "an output of this model"
        )


def _to_row(output: Output) -> Row:
    """One frame's outputs, copied to the host."""
    if isinstance(output, LogitOutput):
        return {name: tensor[0].cpu().numpy().copy() for name, tensor in output.tensors.items()}
    assert isinstance(output, BoxOutput)
    row = {name: tensor.cpu().numpy().copy() for name, tensor in output.frames[0].items()}
    return {**row, "box_count": np.array([len(row["boxes"])], np.int64)}


class _BarePostprocess:
    """A frame and the probability of one class in, the class alone out."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def answer(self, inputs: Row, options: Options) -> Iterator[Row]:
        frame, probability = inputs["frame"], inputs["probability"]
        device = self._pipeline.device
        scores = ClassScores(
            probability_nhw=torch.from_numpy(probability)[None].to(device),
            class_id=1,
            threshold=0.5 if options.score_threshold < 0 else options.score_threshold,
        )
        size = (probability.shape[0], probability.shape[1])
        whole = dataclasses.replace(
            self._pipeline.preprocessing, resize_px=size, crop_px=None, max_px=None, fit="stretch"
        )
        shape = geometry(whole, frame.shape[0], frame.shape[1])
        with self._pipeline.stages.lend() as stages:
            rendered = stages.postprocess(
                torch.from_numpy(frame)[None].to(device), scores, shape, RenderStyle.of(options)
            )
        assert rendered.pixels_nhwc is not None
        yield {
            "segmented": np.asarray(rendered.pixels_nhwc[0]),
            "mask": rendered.class_map_nhw[0],
            "error": text_column(""),
        }
