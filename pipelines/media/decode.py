"""Bytes → FrameBatch chunks: picks the decoder and says why. The front door of all decoding.

What a file is, its content tells (`identity`). Pictures go to Pillow, and so does animated WebP. Video,
and other animated pictures, go to NVDEC if the GPU can decode it exactly as the CPU would, else to PyAV.
`Medium.decoder_reason` says in words why.
"""

from __future__ import annotations

import re

from pipelines.media.identity.moving import moving_format
from pipelines.media.identity.others import refusal
from pipelines.media.identity.pictures import image_format
from pipelines.media.images import open_image
from pipelines.media.medium import WHOLE_FRAMES, Leave, Limits, Medium, Wanted
from pipelines.media.video import Video
from pipelines.protocol.errors import InvalidMedia, UnsupportedMedia
from pipelines.protocol.options import Options

# No container and no image begins with so many letters.
BASE64_TEXT = re.compile(rb"(data:[\w/.+-]+;base64,)?[A-Za-z0-9+/]{32}")


def open_media(
    encoded: bytes,
    *,
    options: Options,
    limits: Limits,
    device: str,
    wanted: Wanted = WHOLE_FRAMES,
    leave: Leave | None = None,
) -> Medium:
    """Open a medium for one pass over its selected frames; use it in a `with` statement.

    Args:
        encoded: the encoded file.
        options: `start_s`, `end_s`, `fps`, `keyframes_only`, `stride`, `max_frames` select frames; `decoder`
            chooses the decoder.
        device: where frames are wanted, `"cpu"` or `"cuda"`; NVDEC gives CUDA tensors, others numpy arrays.
        wanted: what is made of the frames. NVDEC's graph also makes the model's pixels, and so does the CPU's
            decoder if they are wanted on the CPU. Pictures, and frames for a GPU, are only kept.
        leave: until when it is decoded, and what admits it; None: it may take its time, and any memory.

    Raises:
        InvalidMedia: not a readable image or video. UnsupportedMedia: the server, or the decoder that the
            options demand, does not take this kind. TooLarge: over a limit. Later faults are raised by
            `chunks()`.
    """
    _check(encoded, limits)
    leave, image = leave or Leave(), _image_format(encoded)
    if image is not None:
        if options.decoder == "nvdec":
            raise UnsupportedMedia("NVDEC does not decode images", hint="leave out decoder=nvdec")
        wanted = _on_host(wanted, device)
        return open_image(encoded, image, options=options, limits=limits, leave=leave, wanted=wanted)
    video = Video(encoded, limits, leave)
    try:
        return _route(video, options, device, wanted)
    except BaseException:
        video.close()
        raise


def _image_format(encoded: bytes) -> str | None:
    """Pillow's name of a picture's format; None for what may be a video. Raises for what is neither."""
    image = image_format(encoded)
    # Some raw files of cameras begin like a TIFF.
    if image in (None, "TIFF") and not moving_format(encoded) and (error := refusal(encoded)):
        raise error
    return image


def _route(video: Video, options: Options, device: str, wanted: Wanted) -> Medium:
    if not device.startswith("cuda"):
        reason = "option decoder=cpu" if options.decoder == "cpu" else f"device is {device}"
    elif options.decoder == "cpu":
        reason = "option decoder=cpu"
    elif options.damaged == "error":
        reason = "option damaged=error, and NVDEC does not tell of damage"
    else:
        # DALI is loaded only if there is a GPU to use.
        from pipelines.media.nvdec import index_frames, open_nvdec

        index = index_frames(video, device)
        if not isinstance(index, str):
            return open_nvdec(video, index, options=options, device=device, wanted=wanted)
        reason = index
    if options.decoder == "nvdec":
        raise UnsupportedMedia(
            f"NVDEC cannot decode this medium: {reason}", hint="leave out decoder=nvdec, or use decoder=cpu"
        )
    return video.medium(options, reason, _on_host(wanted, device))


def _on_host(wanted: Wanted, device: str) -> Wanted:
    """What is made of frames on the host: for a GPU they are only kept, since DALI prepares them there."""
    return Wanted(repeat_frames=wanted.repeat_frames) if device.startswith("cuda") else wanted


def _check(encoded: bytes, limits: Limits) -> None:
    limits.check_bytes(encoded)
    if not encoded:
        raise InvalidMedia("the medium is empty (0 bytes)", hint="send the file's bytes")
    if BASE64_TEXT.match(encoded):
        raise InvalidMedia(
            f"the medium looks like base64 text: it starts {encoded[:8]!r}",
            hint="set the option base64 to true, without 'data:…,' and line breaks, or send the file's bytes",
        )
