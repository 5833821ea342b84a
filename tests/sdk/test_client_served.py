"""The client against the real server: both protocols say the same, in one answer and as a stream."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import client as program
from client import (
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    Client,
    DetectionAnswer,
    SegmentationAnswer,
)
from pipelines.protocol import rle
from pipelines.protocol.errors import (
    DeadlineExceeded,
    InvalidMedia,
    InvalidOptions,
    ModelUnavailable,
    TooLarge,
    TrividError,
    UnsupportedMedia,
)
from pipelines.protocol.options import Scalar
from tests.conftest import Server
from tests.support import media

FRAMES = 24
ASKED = 17  # more than one chunk
WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def clip() -> bytes:
    return media.clip(frames=FRAMES, width=WIDTH, height=HEIGHT, rate=10)


@pytest.fixture(scope="module", params=["grpc", "http"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(request.getfixturevalue(f"{request.param}_url"), timeout_s=60) as connected:
        yield connected


def joined(parts: Iterator[SegmentationAnswer]) -> SegmentationAnswer:
    return SegmentationAnswer.concatenate(list(parts))


def collect(parts: Iterator[SegmentationAnswer], frames: list[int]) -> None:
    for part in parts:
        frames.extend(part.frame_index.tolist())


def assert_same(one: SegmentationAnswer, other: SegmentationAnswer) -> None:
    for name in ("frame_index", "pts_s", "class_pixels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("class_names", "height_px", "width_px", "decoder", "final"):
        assert getattr(one, name) == getattr(other, name), name
    assert list(one.mask) == list(other.mask)
    assert list(one.overlay) == list(other.overlay)


def frames_of(film: bytes) -> int:
    with av.open(io.BytesIO(film), "r") as container:
        return len(list(container.decode(video=0)))


def test_info_and_readiness(client: Client) -> None:
    info = client.info()
    assert info["device"] == "cpu"
    assert info["max_media_bytes"] > 1 << 20
    labels = info["models"]["segmentation"]["labels"]
    assert len(labels) == len(set(labels)) > 1
    assert client.ready()
    client.wait_ready(5)


@pytest.mark.parametrize(
    ("mask", "overlay"), [("rle", "none"), ("png", "jpeg"), ("raw", "raw"), ("none", "mp4")]
)
def test_a_stream_says_what_one_answer_says(client: Client, clip: bytes, mask: str, overlay: str) -> None:
    options: dict[str, Scalar] = {"mask": mask, "overlay": overlay, "max_frames": ASKED, "alpha": 0.25}
    whole = client.segment(clip, **options)
    parts = joined(client.segment_stream(clip, **options))
    assert_same(whole, parts)
    assert whole.frame_index.tolist() == list(range(ASKED))
    np.testing.assert_allclose(whole.pts_s, np.arange(ASKED) / 10, atol=1e-4)
    assert (whole.height_px, whole.width_px) == (HEIGHT, WIDTH)
    assert whole.class_pixels.sum(axis=1).tolist() == [HEIGHT * WIDTH] * ASKED
    assert len(whole.mask) == (0 if mask == "none" else ASKED)
    assert len(whole.overlay) == (ASKED if overlay in ("jpeg", "raw") else 0)
    if overlay == "mp4":
        assert [frames_of(answer.video) for answer in (whole, parts)] == [ASKED, ASKED]


def test_both_protocols_agree(grpc_url: str, http_url: str, clip: bytes) -> None:
    options: dict[str, Scalar] = {
        "start_s": 0.55,
        "end_s": 2.0,
        "stride": 3,
        "mask": "raw",
        "overlay": "jpeg",
    }
    with Client(grpc_url) as grpc_client, Client(http_url) as http_client:
        one, other = (each.segment(clip, **options) for each in (grpc_client, http_client))
        assert_same(one, other)
        assert_same(*(joined(each.segment_stream(clip, **options)) for each in (grpc_client, http_client)))
    assert one.pts_s.min() >= 0.55
    assert one.pts_s.max() < 2.0
    assert set(np.diff(one.frame_index)) == {3}


def test_all_forms_of_a_mask_are_one(client: Client, clip: bytes) -> None:
    lengths, png, raw = (
        client.segment(clip, max_frames=1, mask=form).mask[0] for form in ("rle", "png", "raw")
    )
    expected = np.frombuffer(raw, np.uint8).reshape(HEIGHT, WIDTH)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), expected)
    np.testing.assert_array_equal(rle.decode(lengths, (HEIGHT, WIDTH)), expected)


@pytest.mark.parametrize("kind", [ClassificationAnswer, DetectionAnswer, SegmentationAnswer, ActionAnswer])
def test_answers_are_equal_whoever_else_is_served(
    kind: type[Answer], grpc_url: str, http_url: str, clip: bytes
) -> None:
    """Alone, and beside others, so in batches of other sizes: only floats differ, in their last digits."""
    other = media.clip(frames=FRAMES, width=HEIGHT, height=WIDTH, rate=10, gop=3)
    masks = {"mask": "raw"} if kind is SegmentationAnswer else {}
    with Client(grpc_url) as client, Client(http_url) as neighbour, ThreadPoolExecutor(4) as pool:
        alone = client.ask(kind, clip, masks)
        beside = [pool.submit(neighbour.ask, kind, other, {"max_frames": count}) for count in (3, 10, 24)]
        answers = [client.ask(kind, clip, masks) for _ in range(2)]
        for one in beside:
            one.result()
    assert len(alone) > 0
    for answer in answers:
        for column in kind.own_columns():
            one, same = getattr(alone, column.name), getattr(answer, column.name)
            if column.dtype is np.float32:
                np.testing.assert_allclose(same, one, rtol=1e-5, atol=1e-6, err_msg=column.name)
            else:
                np.testing.assert_array_equal(same, one, err_msg=column.name)


@pytest.mark.parametrize("stream", [False, True])
def test_an_image(client: Client, stream: bool) -> None:
    picture = media.image("png", width=30, height=50)
    answer = (
        joined(client.segment_stream(picture, overlay="jpeg"))
        if stream
        else client.segment(picture, overlay="jpeg")
    )
    assert (len(answer), answer.height_px, answer.width_px, answer.decoder) == (1, 50, 30, "pillow")
    assert Image.open(io.BytesIO(answer.overlay[0])).size == (30, 50)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("sent", "options", "raises", "message"),
    [
        (b"", {}, (InvalidMedia, UnsupportedMedia), "."),
        (b"plain text, no video", {}, (InvalidMedia, UnsupportedMedia), "."),
        (b"\x00" * 1000, {}, (InvalidMedia, UnsupportedMedia), "."),
        (media.audio_only(), {}, (InvalidMedia, UnsupportedMedia), "."),
        (media.png_of_claimed_size(60_000, 60_000), {}, TooLarge, "3600000000 pixels"),
        (None, {"colour": "red"}, InvalidOptions, "colour"),
        (None, {"stride": "often"}, InvalidOptions, "stride='often'.*expected a whole number"),
        (None, {"stride": 0}, InvalidOptions, "stride=0"),
        (None, {"alpha": 1.5}, InvalidOptions, r"alpha=1\.5"),
        (None, {"class_name": "unicorn"}, InvalidOptions, "unicorn"),
        (None, {"start_s": 2.0, "end_s": 1.0}, InvalidOptions, r"end_s=1\.0"),
        (None, {"start_s": 1000.0}, InvalidOptions, r"start_s=1000\.0.*from 0\.000 s to \d\.\d{3} s"),
        (None, {"decoder": "nvdec"}, TrividError, "nvdec|NVDEC|GPU"),
    ],
)
def test_errors_are_the_servers_own(
    client: Client,
    clip: bytes,
    stream: bool,
    sent: bytes | None,
    options: dict[str, Scalar],
    raises: type[TrividError],
    message: str,
) -> None:
    given = clip if sent is None else sent
    with pytest.raises(raises, match=message):
        joined(client.segment_stream(given, **options)) if stream else client.segment(given, **options)


def test_more_frames_than_one_answer_takes(client: Client) -> None:
    long = media.clip(frames=301, width=32, height=32)
    with pytest.raises(TooLarge, match=r"300 frames.*stream"):
        client.segment(long)
    assert len(joined(client.segment_stream(long, mask="none"))) == 301


@pytest.mark.parametrize(("scheme", "other"), [("http", "grpc"), ("grpc", "http")])
def test_the_port_of_the_other_protocol(scheme: str, other: str, server: Server) -> None:
    port = server.grpc_port if scheme == "http" else server.http_port
    said = f"use --url {other}://127.0.0.1:{port}; unless configured, HTTP is on port 8000, gRPC on 8001"
    with Client(f"{scheme}://127.0.0.1:{port}") as client, pytest.raises(ModelUnavailable, match=said):
        client.info()


def test_too_large_a_medium_stays_here(client: Client) -> None:
    limit = client.info()["max_media_bytes"]
    with pytest.raises(TooLarge, match=str(limit)):
        client.segment(bytes(limit + 1))


def test_what_comes_before_the_damage_is_answered(client: Client, clip: bytes) -> None:
    broken = media.truncated(media.clip(frames=FRAMES, mux_options={"movflags": "+faststart"}), 0.9)
    frames: list[int] = []
    with pytest.raises(InvalidMedia):
        collect(client.segment_stream(broken), frames)
    assert frames == list(range(len(frames)))
    assert 0 < len(frames) < FRAMES
    with pytest.raises(InvalidMedia) as caught:
        client.segment(broken)
    assert caught.value.answer.frame_index.tolist() == frames
    assert len(client.segment(clip, max_frames=1)) == 1  # the server is well


def test_a_selection_of_nothing(client: Client, clip: bytes) -> None:
    nothing: dict[str, Scalar] = {"keyframes_only": True, "start_s": 0.05, "end_s": 0.15}
    for answer in (client.segment(clip, **nothing), joined(client.segment_stream(clip, **nothing))):
        assert (len(answer), answer.class_pixels.shape[0], answer.final) == (0, 0, True)


def test_leaving_a_stream_early(client: Client, clip: bytes) -> None:
    stream = client.segment_stream(clip)
    assert next(stream).frame_index[0] == 0
    stream.close()
    assert len(client.segment(clip, max_frames=2)) == 2


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_timeout_too_short(scheme: str, request: pytest.FixtureRequest, clip: bytes) -> None:
    url = request.getfixturevalue(f"{scheme}_url")
    with Client(url, timeout_s=1e-4) as client, pytest.raises(DeadlineExceeded):
        client.segment(clip)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_command_line(
    scheme: str,
    request: pytest.FixtureRequest,
    clip: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder and a file, everything dumped: pictures, a film and JSON lines lie there afterwards."""
    url = request.getfixturevalue(f"{scheme}_url")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "clip.mp4").write_bytes(clip)
    (tmp_path / "in" / "bad.mkv").write_bytes(b"no video")
    (tmp_path / "photo.jpg").write_bytes(media.image("jpeg", width=40, height=30))
    out = tmp_path / "out"
    base = ["--url", url, "--output", str(out), "--task", "segmentation", "--max-frames", str(ASKED)]
    code = program.main([*base, "--image-paths", str(tmp_path / "photo.jpg"), "--dump-images"])
    assert code == 0, capsys.readouterr().err
    code = program.main(
        [*base, "--video-paths", str(tmp_path / "in"), "--dump-images", "--originals", "--json"]
    )
    said, complained = capsys.readouterr()
    assert code == 1, complained
    assert complained.startswith(f"error: {tmp_path / 'in' / 'bad.mkv'}: ")
    assert complained.count("\n") == 1
    lines = (out / "clip.jsonl").read_text().splitlines()
    assert lines == said.splitlines()[-ASKED:]
    assert sum(json.loads(lines[-1])["class_pixels"].values()) == WIDTH * HEIGHT
    assert (out / "photo_000000_original.jpg").read_bytes() == (tmp_path / "photo.jpg").read_bytes()
    for name, size in {
        "clip_000016_overlay.jpg": (WIDTH, HEIGHT),
        "clip_000016_original.jpg": (WIDTH, HEIGHT),
        "clip_000016_mask.png": (WIDTH, HEIGHT),
        "photo_000000_overlay.jpg": (40, 30),
        "photo_000000_mask.png": (40, 30),
    }.items():
        with Image.open(out / name) as picture:
            assert picture.size == size, name
    with Image.open(out / "clip_000016_original.jpg") as picture:
        assert media.read_number(np.asarray(picture)) == 16  # uncoloured
    assert program.main([*base, "--video-paths", str(tmp_path / "in" / "clip.mp4"), "--overlay", "mp4"]) == 0
    assert frames_of((out / "clip_overlay.mp4").read_bytes()) == ASKED


def test_real_media(client: Client, shared_media: Path) -> None:
    for name in ("sintel_h264_720p.mp4", "pattern_vp9_720p.webm", "monkey_1920px.jpg"):
        answer = joined(client.segment_stream(shared_media / name, stride=10))
        assert len(answer) > 0, name
        assert answer.class_pixels.sum() == len(answer) * answer.height_px * answer.width_px
