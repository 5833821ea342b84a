"""NVDEC through DALI: bytes → frames that never leave the GPU, and the model's pixels of the same graph.

DALI gives no times, and ignores a medium's colour matrix. So times come from PyAV's demuxer, and NVDEC gets a
medium only if its frames would be those of the CPU decoder: else `index_frames` says why not.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn

from pipelines.frames.batch import FrameBatch
from pipelines.frames.dali import build_pipeline, run_pipeline
from pipelines.frames.geometry import geometry
from pipelines.frames.preprocess import prepare_frames
from pipelines.media.medium import MediaInfo, Medium, Wanted
from pipelines.media.packets import CONTAINERS, PacketIndex
from pipelines.media.selection import Selected, columns, in_groups, select
from pipelines.media.video import Video
from pipelines.protocol.errors import InvalidMedia
from pipelines.protocol.options import Options

# FFmpeg's codec name → its number in NVIDIA's `cudaVideoCodec`.
CODECS = {"h264": 4, "hevc": 8, "vp9": 10, "av1": 11}
PIXEL_FORMATS = ("yuv420p", "yuvj420p")
CHROMA_420, DEPTH_BITS = 1, 8
# DALI converts with BT.601 whatever the medium says, but it honours the range.
MATRICES = ("bt601", "unspecified")


class DecodeCaps(ctypes.Structure):
    """CUVIDDECODECAPS of NVIDIA's cuviddec.h (Video Codec SDK 11 and later)."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("depth_minus_8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("is_supported", ctypes.c_ubyte),
        ("decoders", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_macroblocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("has_histogram", ctypes.c_ubyte),
        ("counter_depth", ctypes.c_ubyte),
        ("max_histogram_bins", ctypes.c_ushort),
        ("reserved3", ctypes.c_uint * 10),
    )


@functools.cache
def query_caps(codec: int, device: str) -> DecodeCaps | str:
    """What NVDEC on this GPU can do with 8-bit 4:2:0 of a codec, or in words why it cannot be asked."""
    try:
        library = ctypes.CDLL("libnvcuvid.so.1")
    except OSError as error:
        return f"NVIDIA's decoding library cannot be loaded ({error})"
    # The query reads the thread's CUDA context. A first small allocation makes torch's context current.
    torch.zeros(1, device=device)
    caps = DecodeCaps(codec=codec, chroma=CHROMA_420, depth_minus_8=DEPTH_BITS - 8)
    status = library.cuvidGetDecoderCaps(ctypes.byref(caps))
    return caps if status == 0 else f"NVDEC does not answer (CUDA error {status})"


def size_refusal(caps: DecodeCaps, width_px: int, height_px: int) -> str:
    """Why NVDEC does not take frames of this size; empty if it does."""
    macroblocks = -(-width_px // 16) * -(-height_px // 16)
    if not (caps.min_width <= width_px <= caps.max_width and caps.min_height <= height_px <= caps.max_height):
        return (
            f"{width_px}x{height_px} is outside {caps.min_width}x{caps.min_height} "
            f"to {caps.max_width}x{caps.max_height}"
        )
    if macroblocks > caps.max_macroblocks:
        return f"{width_px}x{height_px} is over {caps.max_macroblocks} macroblocks"
    return ""


def kind_refusal(info: MediaInfo) -> str:
    """Why a medium of this kind stays on the CPU, whatever the GPU can do; empty if it need not."""
    if info.container not in CONTAINERS:
        return f"container {info.container} is not MP4 or Matroska"
    if info.codec not in CODECS:
        return f"codec {info.codec} is not one of {', '.join(CODECS)}"
    if info.pixel_format not in PIXEL_FORMATS:
        return f"pixels are {info.pixel_format}, not 4:2:0 of 8 bits"
    if info.matrix not in MATRICES:
        return f"colours are {info.matrix}; DALI converts only bt601"
    if info.rotation_deg or info.mirrored:
        return f"frames are stored rotated by {info.rotation_deg} degrees or mirrored"
    return ""


def index_frames(video: Video, device: str) -> PacketIndex | str:
    """All frames of a medium that NVDEC on `device` can decode; else in words why it cannot."""
    info = video.info
    if reason := kind_refusal(info):
        return reason
    caps = query_caps(CODECS[info.codec], device)
    if isinstance(caps, str):
        return caps
    if not caps.is_supported:
        return f"NVDEC here does not decode {info.codec} 4:2:0 8 bit"
    if outside := size_refusal(caps, info.width_px, info.height_px):
        return f"NVDEC here does not decode {info.codec} of this size: {outside}"
    return count_frames(video)


def count_frames(video: Video) -> PacketIndex | str:
    """All frames, from the packets, without decoding; in words why DALI would count frames differently."""
    if len(video.container.streams.video) > 1:
        return "there are several video streams"
    if video.is_cut_off():
        return "the file ends early"
    return video.read_index()


def open_nvdec(
    video: Video,
    index: PacketIndex,
    *,
    options: Options,
    device: str,
    wanted: Wanted,
    dali_device: str = "mixed",
) -> Medium:
    """The selected frames as CUDA tensors. Closes `video`, from which it needs only what is known by now.

    Args:
        index: of all frames, as `index_frames` gives it.
        wanted: with `prepare`, the same graph makes the model's pixels (`FrameBatch.model_nchw`).
        dali_device: `"cpu"` runs the same graph with DALI's own decoder (VP8, VP9, MJPEG), for tests.

    Raises:
        TooLarge: more frames are selected than `Limits.max_frames`, or one is too large for the model.
    """
    info, limits = video.info, video.limits
    video.close()
    tick_s = float(index.time_base)
    picked = list(select(index.frames(), options, limits, tick_s=tick_s, repeat=wanted.repeat_frames))
    length = limits.chunk_length(info.width_px, info.height_px)
    pipeline = _build(info, length, wanted, device=device, dali_device=dali_device)
    pipeline.feed_input("media", [np.frombuffer(video.encoded, np.uint8)])
    return Medium(
        info=info,
        decoder="nvdec",
        decoder_reason=f"NVDEC here decodes {info.codec} 4:2:0 8 bit",
        batches=_batches(
            pipeline, picked, wanted, info, total=len(index.ticks), length=length, device=device
        ),
    )


def _build(info: MediaInfo, length: int, wanted: Wanted, *, device: str, dali_device: str) -> Any:
    """The graph: encoded bytes → frames FHWC and the model's pixels FCHW, each if it is wanted."""

    def define() -> list[Any]:
        frames = fn.experimental.inputs.video(
            name="media", device=dali_device, sequence_length=length, last_sequence_policy="partial"
        )
        outputs = [frames] if wanted.keep_pixels else []
        if wanted.prepare is not None:
            shape = geometry(wanted.prepare, info.height_px, info.width_px)
            outputs.append(prepare_frames(frames, shape, wanted.prepare, layout="FCHW"))
        return outputs

    device_id = None if dali_device == "cpu" else torch.device(device).index or 0
    return build_pipeline(define, batch_size=1, device_id=device_id)


def _batches(
    pipeline: Any,
    picked: Sequence[Selected[None]],
    wanted: Wanted,
    info: MediaInfo,
    *,
    total: int,
    length: int,
    device: str,
) -> Generator[FrameBatch, None, None]:
    """Run the graph up to the last picked frame; keep the picked ones of each run."""
    last = picked[-1].frame_index if picked else -1
    runs = {run: list(kept) for run, kept in itertools.groupby(picked, lambda one: one.frame_index // length)}
    for start in range(0, last + 1, length):
        expected = min(length, total - start)
        tensors = _run(pipeline, device, after=start)
        if len(tensors[0]) != expected:
            raise InvalidMedia(
                f"NVDEC gave {len(tensors[0])} frames from frame {start} on, the container has {expected}",
                hint="decoder=cpu may read it",
            )
        # If frames are repeated there may be more of them than a chunk holds.
        for group in in_groups(runs.get(start // length, []), length):
            places = [one.frame_index - start for one in group]
            whole = places == list(range(expected))
            chosen = tensors if whole else [tensor[places] for tensor in tensors]
            yield FrameBatch(
                kept_nhwc=chosen[0] if wanted.keep_pixels else None,
                size_hw=(info.height_px, info.width_px),
                model_nchw=None if wanted.prepare is None else chosen[-1],
                **columns(group),
            )


def _run(pipeline: Any, device: str, *, after: int) -> list[torch.Tensor]:
    """One sequence, not copied: frames `(F, H, W, 3)` and model pixels `(F, 3, h, w)`, where wanted."""
    try:
        return [output[0] for output in run_pipeline(pipeline, torch.device(device))]
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\nStacktrace")[0].split())
        raise InvalidMedia(
            f"NVDEC cannot continue after {after} frames: {reason[:300]}", hint="decoder=cpu may read it"
        ) from error
