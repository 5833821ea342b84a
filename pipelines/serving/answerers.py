"""What answers at the endpoints: whole pipelines (`EndToEnd`), and their stages by themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch

from pipelines.batching.work import Terms
from pipelines.frames.batch import to_numpy
from pipelines.frames.geometry import geometry
from pipelines.media.decode import open_media
from pipelines.models.outputs import BoxOutput, LogitOutput, Output, OutputFacts
from pipelines.pipeline import Pipeline
from pipelines.protocol.columns import Column, Row, Tensor, nbytes, text_column
from pipelines.protocol.errors import InvalidMedia, InvalidOptions, TooLarge, TrividError, UnsupportedMedia
from pipelines.protocol.options import Options
from pipelines.rendering.postprocess import ClassScores, RenderStyle

Part = TypeVar("Part")


class EndToEnd:
    """Media in, answers out: as one answer, or as a stream of them."""

    def __init__(self, pipeline: Pipeline, max_answer_bytes: int) -> None:
        self._pipeline = pipeline
        self._max_answer_bytes = max_answer_bytes
        self._unbounded = dataclasses.replace(pipeline.limits, max_frames=None)

    def unary(self, inputs: Row, options: Options) -> Iterator[Row]:
        """One answer; if the medium breaks off, its error follows."""
        parts, size, faults = [], 0, list[TrividError]()
        for part in _until_broken(self._pipeline.run(bytes(inputs["media"][0]), options), faults):
            parts.append(part)
            size += part.nbytes
            check_size(size, self._max_answer_bytes, part.frame_index)
        yield self._pipeline.task.answer.concatenate(parts).to_columns()
        for fault in faults:
            raise fault

    def stream(self, inputs: Row, options: Options) -> Iterator[Row]:
        for part in self._pipeline.run(bytes(inputs["media"][0]), options, self._unbounded):
            row = part.to_columns()
            check_size(sum(map(nbytes, row.values())), self._max_answer_bytes, part.frame_index)
            yield row


class Example:
    """The seed example's form: frames, and the same with only the class, as raw pixels."""

    def __init__(self, pipeline: Pipeline, max_answer_bytes: int) -> None:
        self._pipeline = pipeline
        self._max_answer_bytes = max_answer_bytes

    def answer(self, inputs: Row, options: Options) -> Iterator[Row]:
        """Background unless a class is named, as in the seed."""
        if not options.class_name and options.class_id < 0:
            options = dataclasses.replace(options, class_id=0)
        options = dataclasses.replace(options, overlay="raw", style="extract", mask="none")
        media = inputs["video"].tobytes()
        originals, segmented, size, faults = [], [], 0, list[TrividError]()
        for frames, answer in _until_broken(self._pipeline.run_with_frames(media, options), faults):
            if frames is None:
                raise InvalidMedia("the video has no frame")
            originals.append(to_numpy(frames.pixels_nhwc))
            segmented.append(np.frombuffer(b"".join(answer.overlay), np.uint8).reshape(originals[-1].shape))
            size += 2 * answer.nbytes
            check_size(size, self._max_answer_bytes, answer.frame_index)
        yield {
            "original": np.concatenate(originals),
            "segmented": np.concatenate(segmented),
            "error": text_column(""),
        }
        for fault in faults:
            raise fault


def _until_broken(parts: Iterable[Part], faults: list[TrividError]) -> Iterator[Part]:
    """The parts of a medium up to where it breaks off; the error goes into `faults` if there are any."""
    begun = False
    try:
        for part in parts:
            begun = True
            yield part
    except (InvalidMedia, UnsupportedMedia) as error:
        if not begun:
            raise
        faults.append(error)


def check_size(size_bytes: int, limit_bytes: int, frame_index: Tensor) -> None:
    """Raise TooLarge as soon as an answer that is made, or gathered up to these frames, passes the limit."""
    if size_bytes > limit_bytes:
        last = int(frame_index.max(initial=0))
        raise TooLarge(
            f"the answer exceeds the server's limit of {limit_bytes >> 20} MiB at frame {last}",
            hint="set max_frames or stride, use jpeg, mp4 or rle instead of raw, or use a stream endpoint",
        )


class PreprocessStage:
    """Decoding and one model's preprocessing, for clients that bring their own other stages."""

    def __init__(self, pipelines: Mapping[str, Pipeline], max_answer_bytes: int) -> None:
        self._pipelines = pipelines
        self._max_answer_bytes = max_answer_bytes

    def answer(self, inputs: Row, options: Options) -> Iterator[Row]:
        pipeline = self.pipeline(options.task)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        size, faults = 0, list[TrividError]()
        encoded = bytes(inputs["media"][0])
        with (
            pipeline.admit(len(encoded), options, Terms.of(options)) as leave,
            open_media(
                encoded, options=options, limits=pipeline.limits, device=pipeline.device, leave=leave
            ) as medium,
        ):
            for frames in _until_broken(medium.chunks(), faults):
                pixels = pipeline.prepare_by_dali(frames).cpu().numpy()
                parts.append((pixels, frames.frame_index, frames.pts_s))
                size += pixels.nbytes
                check_size(size, self._max_answer_bytes, frames.frame_index)
        if not parts:
            raise InvalidOptions("start_s, end_s, stride and max_frames select no frame")
        pixels, numbers, times = map(np.concatenate, zip(*parts, strict=True))
        yield {
            "pixels": pixels,
            "frame_index": numbers,
            "pts_s": times,
            "count": np.array([len(numbers)], np.int64),
            "decoder": text_column(medium.decoder),
            "decoder_reason": text_column(medium.decoder_reason),
            "final": np.array([1], np.uint8),
            "error": text_column(""),
        }
        for fault in faults:
            raise fault

    def pipeline(self, task: str) -> Pipeline:
        """The model of that name, else the first of that task, or of all. Raises InvalidOptions."""
        for name, pipeline in self._pipelines.items():
            if task in ("", name):
                return pipeline
        for pipeline in self._pipelines.values():
            if task == pipeline.spec.task:
                return pipeline
        raise InvalidOptions(f"task={task!r} is not served", hint=f"one of: {', '.join(self._pipelines)}")


class ModelStage:
    """Only the model: a row of model pixels in, its outputs out, by the names that it gives them."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._batcher = pipeline.batcher
        self._known = {column.name: column for column in pipeline.task.model_outputs}
        self.outputs = tuple(self._column(facts) for facts in self._batcher.model.outputs)
        if pipeline.spec.task == "detection":
            self.outputs += (self._known["box_count"],)

    def answer(self, inputs: Row, _options: Options) -> Iterator[Row]:
        pixels = torch.from_numpy(inputs["pixels"])[None].to(self._batcher.model.device)
        (row,) = self._batcher.submit(pixels, _to_row, urgent=True).result()
        yield {**row, "error": text_column("")}

    def _column(self, facts: OutputFacts) -> Column:
        """An output as the first pass has shown it, in the words of the task's own table if there are any."""
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
        return {name: tensor[0].cpu().numpy().copy() for name, tensor in output.sized.items()}
    assert isinstance(output, BoxOutput)
    row = {name: tensor.cpu().numpy().copy() for name, tensor in output.frames[0].items()}
    return {**row, "box_count": np.array([len(row["boxes"])], np.int64)}


class PostprocessStage:
    """A frame and the probability of one class in, only the class out."""

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
