"""Bytes → FrameBatch chunks: picks the decoder and says why. The front door of all decoding.

Images go to Pillow. Video goes to NVDEC if the GPU can decode it exactly as the CPU would, else to PyAV.
`Medium.decoder_reason` says in words why.
"""

from __future__ import annotations

import re

from pipelines.media.images import image_format, open_image
from pipelines.media.medium import Limits, Medium, Wanted
from pipelines.media.video import Video
from pipelines.protocol.errors import InvalidMedia, UnsupportedMedia
from pipelines.protocol.options import Options

WHOLE_FRAMES = Wanted()
# No container and no image begins with so many letters.
BASE64_TEXT = re.compile(rb"(data:[\w/.+-]+;base64,)?[A-Za-z0-9+/]{32}")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")


def open_media(
    encoded: bytes, *, options: Options, limits: Limits, device: str, wanted: Wanted = WHOLE_FRAMES
) -> Medium:
    """Open a medium for one pass over its selected frames; use it in a `with` statement.

    Args:
        encoded: the encoded file.
        options: `start_s`, `end_s`, `fps`, `keyframes_only`, `stride`, `max_frames` select frames; `decoder`
            chooses the decoder.
        device: where frames are wanted, `"cpu"` or `"cuda"`; NVDEC gives CUDA tensors, others numpy arrays.
        wanted: what is made of the frames. NVDEC's graph also makes the model's pixels, and so does the CPU's
            decoder if they are wanted on the CPU. Images, and the CPU's decoder for a GPU, only keep the
            frames.

    Raises:
        InvalidMedia: not a readable image or video. UnsupportedMedia: the server, or the decoder that the
            options demand, does not take this kind. TooLarge: over a limit. Later faults are raised by
            `chunks()`.
    """
    _check(encoded, limits)
    if image_format(encoded):
        if options.decoder == "nvdec":
            raise UnsupportedMedia("NVDEC does not decode images", hint="leave out decoder=nvdec")
        return open_image(encoded, options=options, limits=limits)
    video = Video(encoded, limits)
    try:
        return _route(video, options, device, wanted)
    except BaseException:
        video.close()
        raise


def _route(video: Video, options: Options, device: str, wanted: Wanted) -> Medium:
    if not device.startswith("cuda"):
        reason = "option decoder=cpu" if options.decoder == "cpu" else f"device is {device}"
    elif options.decoder == "cpu":
        reason = "option decoder=cpu"
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
    if device.startswith("cuda"):
        # Frames go to the GPU as they are, and DALI prepares them there.
        wanted = Wanted(repeat_frames=wanted.repeat_frames)
    return video.medium(options, reason, wanted)


def _check(encoded: bytes, limits: Limits) -> None:
    limits.check_bytes(encoded)
    if not encoded:
        raise InvalidMedia("the medium is empty (0 bytes)", hint="send the file's bytes")
    if BASE64_TEXT.match(encoded):
        raise InvalidMedia(
            f"the medium looks like base64 text: it starts {encoded[:8]!r}",
            hint="set the option base64 to true, without 'data:…,' and line breaks, or send the file's bytes",
        )
    if encoded[4:8] == b"ftyp" and encoded[8:12] in HEIF_BRANDS:
        raise UnsupportedMedia("HEIF images are not supported", hint="convert it to JPEG, PNG or AVIF")
