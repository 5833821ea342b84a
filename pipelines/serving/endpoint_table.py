"""The endpoints of the served models: end to end, each stage by itself, and the seed example's contract."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipelines.assembly import EngineRoom
from pipelines.models.spec import TaskName
from pipelines.protocol.answers import answer_columns
from pipelines.protocol.columns import COMMON_COLUMNS, STREAM_COLUMNS, Column, Row, text_column
from pipelines.protocol.options import STREAM_OPTIONS, Options, Scalar
from pipelines.sdk.client import STATUS, STATUS_COLUMNS
from pipelines.serving.answerers import EndToEnd, Example, ModelStage, PostprocessStage, PreprocessStage
from pipelines.serving.endpoints import Endpoint
from pipelines.serving.sessions import Sessions
from pipelines.tasks import TASKS
from pipelines.tasks.job import SELECTION, Task
from pipelines.telemetry.counters import Telemetry

ERROR = COMMON_COLUMNS[-1]
# So many questions to `status` may come together and have room for their answers.
STATUS_ANSWERS = 4


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
    name="segmented",
    dtype=np.uint8,
    dims=("F", "H", "W", "C"),
    help="the same frames, black outside the class",
)
PREPROCESSED = (
    Column(name="pixels", dtype=np.float32, dims=("N", 3, "h", "w"), help="model pixels"),
    Column(name="frame_index", dtype=np.int64, dims=("N",), help="index of the frame in its medium, from 0"),
    Column(name="pts_s", dtype=np.float64, dims=("N",), help="its presentation time in seconds"),
    *COMMON_COLUMNS,
)
MEDIA = Column(name="media", dtype=object, dims=(1,), help="the bytes of a video or image file")
VIDEO = Column(name="video", dtype=np.uint8, dims=("bytes",), help="the encoded video")


def _task_endpoints(name: TaskName, task: Task) -> dict[str, EndpointFacts]:
    """What every model of a task has: media in one answer, media as a stream, and only the model."""
    columns = answer_columns(task.answer)
    one = EndpointFacts(
        help=f"{name} of a clip or an image, end to end, in one answer",
        inputs=(MEDIA,),
        outputs=columns,
        task=name,
        allowed=task.options,
    )
    many = dataclasses.replace(
        one,
        help=f"{name} of a medium of any length, one answer per chunk of frames",
        outputs=(*columns, *STREAM_COLUMNS),
        allowed=(*task.options, *STREAM_OPTIONS),
        stream=True,
    )
    bare = EndpointFacts(
        help=f"only the {name} model, its numbers as they are: a row is one input of model pixels",
        inputs=task.model_inputs,
        outputs=(*task.model_outputs, ERROR),
        task=name,
    )
    return {name: one, f"{name}_stream": many, f"torch_{name}": bare}


ENDPOINT_TABLE: dict[str, EndpointFacts] = {
    **{key: facts for name, task in TASKS.items() for key, facts in _task_endpoints(name, task).items()},
    "dali_preprocess": EndpointFacts(
        help="only decoding and a model's preprocessing",
        inputs=(MEDIA,),
        outputs=PREPROCESSED,
        allowed=("task", *SELECTION),
    ),
    "dali_postprocess": EndpointFacts(
        help="only the postprocessing for one class; a row is a frame",
        inputs=(FRAME, PROBABILITY),
        outputs=(SEGMENTED, CLASS_MASK, ERROR),
        task="segmentation",
        allowed=("score_threshold", "style", "alpha", "outline_px", "background"),
        preset={"style": "extract"},
    ),
    "ResNet101": EndpointFacts(
        help="the contract of PyTriton's DALI example: raw frames, and the same with only one class",
        inputs=(VIDEO,),
        outputs=(ORIGINAL, FRAMES_SEGMENTED, ERROR),
        task="segmentation",
        allowed=("class_name", "class_id", "score_threshold", "max_frames"),
    ),
}

Answering = Callable[[Row, Options], Iterator[Row]]


def model_endpoints(room: EngineRoom, max_answer_bytes: int, sessions: Sessions) -> list[Endpoint]:
    """Those of ENDPOINT_TABLE that the room's models can answer; each task's own by the names of its models.

    The others that need a model of a task get the first one of that task.
    """

    def make(name: str, row: str, answer: Answering, model: str = "") -> None:
        facts = ENDPOINT_TABLE[row]
        made.append(
            Endpoint(
                name=name,
                inputs=facts.inputs,
                outputs=facts.outputs,
                answer=answer,
                telemetry=room.telemetry,
                max_answer_bytes=max_answer_bytes,
                allowed=facts.allowed,
                preset=facts.preset,
                model=model,
                sessions=sessions if facts.stream else None,
            )
        )

    made: list[Endpoint] = []
    for name, pipeline in room.by_endpoint().items():
        task, model = pipeline.spec.task, pipeline.name
        whole, bare = EndToEnd(pipeline, max_answer_bytes), ModelStage(pipeline)
        make(name, task, whole.unary, model)
        make(f"{name}_stream", f"{task}_stream", whole.stream, model)
        make(f"torch_{name}", f"torch_{task}", bare.answer, model)
        made[-1] = dataclasses.replace(made[-1], outputs=(*bare.outputs, ERROR))
    make("dali_preprocess", "dali_preprocess", PreprocessStage(room.pipelines, max_answer_bytes).answer)
    if (segmenter := room.of_task("segmentation")) is not None:
        example = Example(segmenter, max_answer_bytes)
        make("dali_postprocess", "dali_postprocess", PostprocessStage(segmenter).answer, segmenter.name)
        make("ResNet101", "ResNet101", example.answer, segmenter.name)
    return made


def status_endpoint(
    describe: Callable[[], Mapping[str, object]],
    telemetry: Telemetry,
    first: Mapping[str, object] | None = None,
) -> Endpoint:
    """`status`: what serves here, its limits and its counters, as JSON.

    Args:
        first: a first answer. Labels are most of it, and stay; the rest has room to grow.
    """
    size = len(json.dumps(first or {}))

    def answer(_inputs: Row, _options: Options) -> Iterator[Row]:
        yield {"status": text_column(json.dumps(describe()))}

    return Endpoint(
        name=STATUS,
        inputs=(Column(name="query", dtype=object, dims=(1,), help="any text"),),
        outputs=STATUS_COLUMNS,
        answer=answer,
        telemetry=telemetry,
        max_answer_bytes=STATUS_ANSWERS * size + (1 << 20),
    )
