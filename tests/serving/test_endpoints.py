"""The endpoints as strangers call them: stock tritonclient, PyTriton's client, curl, plain HTTP."""

from __future__ import annotations

import base64
import io
import json
import resource
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from PIL import Image
from pytriton.client import ModelClient

from client import Client
from pipelines.machine import watchdog
from pipelines.protocol import rle
from pipelines.protocol.errors import TrividError, from_json
from pipelines.serving.endpoint_table import ENDPOINT_TABLE
from pipelines.zoo.demo.specs import demo_specs
from tests.conftest import ROOT, Server
from tests.support import media

SPEC = demo_specs()["segmentation"]
DEMO_LABELS = SPEC.labels
Tensors = dict[str, npt.NDArray[Any]]


# PyTriton's client says so for every gRPC connection that has a timeout at all.
pytestmark = pytest.mark.filterwarnings("ignore:tritonclient.grpc doesn't support timeout")


def infer_grpc(server: Server, model: str, inputs: Tensors, **parameters: str | int | bool) -> Tensors:
    """One request by the stock gRPC client; arrays as they are, rows first."""
    types = {"u": "UINT8", "f": "FP32", "O": "BYTES"}
    tensors = []
    for name, value in inputs.items():
        tensor = triton_grpc.InferInput(name, list(value.shape), types[value.dtype.kind])
        tensors.append(tensor.set_data_from_numpy(value))
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        result = client.infer(model, tensors, parameters=parameters, client_timeout=60)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def column(*values: bytes) -> npt.NDArray[Any]:
    rows = np.empty((len(values), 1), dtype=object)
    rows[:, 0] = values
    return rows


def error_code(answer: Tensors, row: int = 0) -> str:
    text = bytes(answer["error"][row].flat[0])
    return from_json(text).code if text else ""


def masks(answer: Tensors, row: int = 0) -> npt.NDArray[np.uint8]:
    size = tuple(int(side) for side in answer["size"][row])
    return np.stack([rle.decode(bytes(text), (size[0], size[1])) for text in answer["mask"][row]])


@pytest.fixture(scope="module")
def demo_media() -> bytes:
    return (ROOT / "assets" / "demo.mp4").read_bytes()


def test_stock_clients_agree_over_both_protocols(server: Server, demo_media: bytes) -> None:
    options: dict[str, Any] = {"max_frames": 5, "overlay": "jpeg", "stride": 7}
    over_grpc = infer_grpc(server, "segmentation", {"media": column(demo_media)}, **options)
    tensor = triton_http.InferInput("media", [1, 1], "BYTES")
    tensor.set_data_from_numpy(column(demo_media))
    with triton_http.InferenceServerClient(f"127.0.0.1:{server.http_port}", network_timeout=60) as client:
        result = client.infer("segmentation", [tensor], parameters=options)
        for name, value in over_grpc.items():
            np.testing.assert_array_equal(result.as_numpy(name), value, err_msg=name)
    assert over_grpc["frame_index"][0].tolist() == [0, 7, 14, 21, 28]
    assert [bytes(name).decode() for name in over_grpc["class_names"][0]] == list(DEMO_LABELS)
    assert all(bytes(picture).startswith(b"\xff\xd8") for picture in over_grpc["overlay"][0])


def test_pytritons_own_client_sends_ragged_images_in_one_request(server: Server) -> None:
    sizes = [(33 + 3 * k, 40 + 2 * k) for k in range(8)]
    pictures = [media.image("png", width=width, height=height) for height, width in sizes]
    with ModelClient(
        f"grpc://127.0.0.1:{server.grpc_port}", "segmentation", inference_timeout_s=60
    ) as client:
        answer = client.infer_batch(media=column(*pictures))
    assert [tuple(size) for size in answer["size"]] == sizes
    assert answer["count"].flatten().tolist() == [1] * 8


def test_a_file_is_posted_as_it_is_with_options_as_headers(server: Server) -> None:
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
    options = {"Trivid-Class-Name": "star", "Trivid-Mask": "none"}
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/segmentation/infer",
        media.image("png", width=64, height=48),
        {**headers, **options},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        head = response.read(int(response.headers["Inference-Header-Content-Length"]))
        body = response.read()
    answer = read_binary(json.loads(head)["outputs"], body)
    assert answer["error"] == b"\0\0\0\0"
    assert np.frombuffer(answer["size"], np.int64).tolist() == [48, 64]
    assert answer["mask"] == b"\0\0\0\0"


def read_binary(outputs: list[dict[str, Any]], body: bytes) -> dict[str, bytes]:
    """The bytes of each output of KServe's binary form."""
    parts, start = {}, 0
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        parts[output["name"]] = body[start : start + size]
        start += size
    return parts


def test_generate_answers_in_json(server: Server) -> None:
    picture = base64.b64encode(media.image("jpeg", width=64, height=48)).decode()
    for body, error in (
        ({"base64": True}, ""),
        ({"base64": True, "strid": 2}, "invalid_options"),
        ({}, "invalid_media"),
    ):
        data = json.dumps({"media": picture, **body}).encode()
        request = urllib.request.Request(f"{server.http_url}/v2/models/segmentation/generate", data)
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert (json.loads(answer["error"])["code"] if answer["error"] else "") == error
        assert answer["count"] == (0 if error else 1)


def test_generate_stream_sends_server_sent_events(server: Server, demo_media: bytes) -> None:
    body = {"media": base64.b64encode(demo_media).decode(), "base64": True, "max_frames": 40, "mask": "png"}
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/segmentation_stream/generate_stream", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        lines = [line for line in response.read().decode().split("\n") if line.startswith("data:")]
    events = [json.loads(line.removeprefix("data:")) for line in lines]
    assert [event["error"] for event in events] == [""] * 3
    assert [event["final"] for event in events] == [0, 0, 1]
    assert [index for event in events for index in event["frame_index"]] == list(range(40))
    assert base64.b64decode(events[0]["mask"][0]).startswith(b"\x89PNG")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_seed_examples_contract(server: Server, protocol: str) -> None:
    videos = [media.clip(frames=33, width=64, height=48), media.clip(frames=40, width=64, height=48)]
    size = max(map(len, videos))
    rows = np.stack([np.frombuffer(video.ljust(size, b"\0"), np.uint8) for video in videos])
    port = server.grpc_port if protocol == "grpc" else server.http_port
    with ModelClient(f"{protocol}://127.0.0.1:{port}", "ResNet101", inference_timeout_s=60) as client:
        answer = client.infer_batch(video=rows)
    assert answer["original"].shape == answer["segmented"].shape == (2, 40, 48, 64, 3)
    assert answer["original"].dtype == np.uint8
    assert not answer["original"][0, 33:].any()
    kept = answer["segmented"].any(axis=-1)
    np.testing.assert_array_equal(answer["segmented"][kept], answer["original"][kept])
    assert error_code(answer) == ""


def test_the_bare_stages_chained_give_the_end_to_end_answer(server: Server, demo_media: bytes) -> None:
    options: dict[str, Any] = {"max_frames": 2, "start_s": 1}
    whole = infer_grpc(server, "segmentation", {"media": column(demo_media)}, mask="rle", **options)
    prepared = infer_grpc(server, "dali_preprocess", {"media": column(demo_media)}, **options)
    assert prepared["pixels"].dtype == np.float32
    np.testing.assert_array_equal(prepared["frame_index"], whole["frame_index"])
    logits = infer_grpc(server, "torch_segmentation", {"pixels": prepared["pixels"][0]})["logits"]
    assert logits.shape[:2] == (2, len(DEMO_LABELS))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    shape = DEMO_LABELS.index("circle")
    probability = (exponentials / exponentials.sum(axis=1, keepdims=True))[:, shape].astype(np.float32)
    frames = infer_grpc(
        server,
        "segmentation",
        {"media": column(demo_media)},
        overlay="raw",
        alpha="0",
        mask="none",
        **options,
    )
    height, width = whole["size"][0]
    pixels = np.stack(
        [np.frombuffer(bytes(raw), np.uint8).reshape(height, width, 3) for raw in frames["overlay"][0]]
    )
    post = infer_grpc(server, "dali_postprocess", {"frame": pixels, "probability": probability})
    alone = infer_grpc(server, "segmentation", {"media": column(demo_media)}, class_name="circle", **options)
    agree = (masks(alone) > 0) == (post["mask"] > 0)
    assert agree.mean() > 0.9999
    np.testing.assert_array_equal(post["segmented"][post["mask"] > 0], pixels[post["mask"] > 0])
    assert not post["segmented"][post["mask"] == 0].any()
    assert prepared["pixels"].shape[3] == SPEC.preprocessing.resize_px


def test_one_corrupt_video_among_eight_good_ones(server: Server, demo_media: bytes) -> None:
    """The good ones answer as alone, bit by bit; the bad one gets its own error."""
    media_of = [demo_media] * 4 + [media.clip(frames=20 + k, width=64 + 2 * k, height=48) for k in range(4)]
    alone = [infer_grpc(server, "segmentation", {"media": column(one)}, max_frames=40) for one in media_of]
    bad = demo_media[: len(demo_media) // 3]
    with ThreadPoolExecutor(9) as pool:
        jobs = [
            pool.submit(infer_grpc, server, "segmentation", {"media": column(one)}, max_frames=40)
            for one in [*media_of[:4], bad, *media_of[4:]]
        ]
        answers = [job.result(timeout=100) for job in jobs]
    broken = answers.pop(4)
    assert error_code(broken) == "invalid_media"
    for together, lone in zip(answers, alone, strict=True):
        assert error_code(together) == ""
        for name, value in lone.items():
            np.testing.assert_array_equal(together[name], value, err_msg=name)


def test_a_corrupt_row_leaves_the_other_rows_of_its_request_alone(server: Server) -> None:
    pictures = [media.image("jpeg", width=64, height=48) for _ in range(16)]
    clean = infer_grpc(server, "segmentation", {"media": column(*pictures)})
    pictures[5] = b"no picture"
    mixed = infer_grpc(server, "segmentation", {"media": column(*pictures)})
    assert [error_code(mixed, row) for row in range(16)] == [
        "" if row != 5 else "invalid_media" for row in range(16)
    ]
    for name, value in clean.items():
        others = [row for row in range(16) if row != 5]
        np.testing.assert_array_equal(mixed[name][others], value[others], err_msg=name)


def test_wrong_options_of_the_bare_stages_are_errors_too(server: Server, demo_media: bytes) -> None:
    answer = infer_grpc(server, "dali_preprocess", {"media": column(demo_media)}, overlay="jpeg")
    assert error_code(answer) == "invalid_options"
    answer = infer_grpc(server, "torch_segmentation", {"pixels": np.zeros((1, 3, 64, 64), np.float32)}, x=1)
    assert error_code(answer) == "invalid_options"
    answer = infer_grpc(server, "ResNet101", {"video": np.zeros((1, 100), np.uint8)})
    assert error_code(answer) == "invalid_media"


def test_tensors_of_no_elements_are_typed_errors_and_stay_nowhere(server: Server) -> None:
    frames = np.full((1, 1080, 1920, 3), 7, np.uint8)

    def ask(side: int) -> str:
        probability = np.zeros((1, side, side), np.float32)
        return error_code(
            infer_grpc(server, "dali_postprocess", {"frame": frames, "probability": probability})
        )

    def shared_bytes() -> int:
        return sum(path.stat().st_blocks for path in Path("/dev/shm").iterdir()) * 512

    assert ask(16) == ""
    before = shared_bytes()
    assert [ask(0) for _ in range(10)] == ["invalid_media"] * 10
    assert shared_bytes() - before < 2 * frames.nbytes
    (folder,) = Path(tempfile.gettempdir()).glob(f"trivid-{server.process.pid}-*")
    assert not list(folder.glob("message-*"))
    for model in ("torch_classification", "torch_segmentation"):
        answer = infer_grpc(server, model, {"pixels": np.zeros((2, 3, 0, 8), np.float32)})
        assert [error_code(answer, row) for row in range(2)] == ["invalid_media"] * 2, model
    assert (
        error_code(infer_grpc(server, "ResNet101", {"video": np.zeros((1, 0), np.uint8)})) == "invalid_media"
    )
    assert ask(16) == ""


def test_raw_pixels_beyond_the_answer_limit_are_refused(server: Server) -> None:
    big = media.clip(frames=98, width=1920, height=1080, codec="mpeg4")
    answer = infer_grpc(server, "segmentation", {"media": column(big)}, overlay="raw", mask="none")
    assert error_code(answer) == "too_large"


def test_rows_that_fit_alone_but_not_together_are_refused(server: Server) -> None:
    """Rows are padded to the largest: a large picture beside a small one of many frames."""
    large = media.image("png", width=2600, height=2000)
    long = media.clip(frames=200, width=32, height=32)
    size = max(len(large), len(long))
    rows = np.stack([np.frombuffer(one.ljust(size, b"\0"), np.uint8) for one in (large, long)])
    answer = infer_grpc(server, "ResNet101", {"video": rows})
    assert [error_code(answer, row) for row in range(2)] == ["too_large"] * 2
    assert error_code(infer_grpc(server, "ResNet101", {"video": rows[1:]})) == ""


def test_an_option_that_is_no_text_fails_alone(server: Server) -> None:
    """PyTriton reads the options of a whole batch at once; those of good neighbours must not suffer."""
    picture = media.image("png", width=64, height=48)

    def ask(number: int) -> bytes:
        head = b'{"class_name": "\xff", ' if number % 5 == 0 else b"{"
        body = head + b'"base64": true, "media": "' + base64.b64encode(picture) + b'"}'
        request = urllib.request.Request(f"{server.http_url}/v2/models/segmentation/generate", body)
        with urllib.request.urlopen(request, timeout=60) as response:
            return bytes(response.read())

    with ThreadPoolExecutor(10) as pool:
        answers = [json.loads(answer) for answer in pool.map(ask, range(30))]
    codes = [json.loads(answer["error"])["code"] if answer["error"] else "" for answer in answers]
    assert codes == ["" if number % 5 else "invalid_options" for number in range(30)]


def test_status_tells_model_limits_and_counters(server: Server) -> None:
    answer = infer_grpc(server, "status", {"query": column(b"")})
    status = json.loads(bytes(answer["status"][0, 0]))
    assert status["models"]["segmentation"]["labels"] == list(DEMO_LABELS)
    assert status["max_media_bytes"] == 64 << 20
    assert status["device"] == "cpu"
    assert status["decoders"]["pyav"] > 0
    assert status["frames"]["answered"] > 0


def test_the_endpoints_of_the_served_tasks_are_ready_and_nothing_else_is(server: Server) -> None:
    served = demo_specs()
    ready = {name for name in ENDPOINT_TABLE if server.get(f"/v2/models/{name}/ready")[0] == 200}
    assert ready == {
        name for name, facts in ENDPOINT_TABLE.items() if facts.task is None or facts.task in served
    }
    assert server.get("/v2/models/status/ready")[0] == 200
    assert server.get("/v2/models/other/ready")[0] != 200
    assert server.get("/v2/repository/index")[0] != 200


def test_an_answer_that_cannot_be_read_fails_alone(server: Server, demo_media: bytes) -> None:
    """Large answers come in files; without a free file descriptor a stub cannot open them."""
    kind, family = resource.RLIMIT_NOFILE, watchdog.children(server.process.pid)
    stubs = [process.pid for process, name in family.items() if "triton_py" in name]
    before = {pid: resource.prlimit(pid, kind) for pid in stubs}
    assert before
    with Client(server.grpc_url, timeout_s=20) as client:
        for pid, (_, hard) in before.items():
            resource.prlimit(pid, kind, (3, hard))
        try:
            for _ in range(2):
                with pytest.raises(TrividError, match="the server failed"):
                    client.segment(demo_media, overlay="raw", max_frames=4)
                with pytest.raises(TrividError, match="an answer could not be read: OSError"):
                    list(client.segment_stream(demo_media, overlay="raw", max_frames=4))
                assert len(client.segment(demo_media, mask="none", max_frames=4)) == 4
        finally:
            for pid, limits in before.items():
                resource.prlimit(pid, kind, limits)
        assert len(client.segment(demo_media, overlay="raw", max_frames=4)) == 4
        assert sum(map(len, client.segment_stream(demo_media, overlay="raw", max_frames=4))) == 4


def test_a_count_of_rows_beyond_32_bits_is_a_typed_error(server: Server, demo_media: bytes) -> None:
    """Triton takes 2^32 rows for none."""
    tensor = triton_grpc.InferInput("media", [1, 1], "BYTES")
    tensor.set_data_from_numpy(column(demo_media))
    tensor.set_shape([1 << 32, 1])
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        text = bytes(client.infer("segmentation", [tensor]).as_numpy("error").flat[0])
    error = from_json(text)
    assert error.code == "invalid_media"
    assert "no dimension for rows" in error.message


def test_long_json_is_read(server: Server) -> None:
    """Triton reads it on a thread's stack, of which there is 8 MiB by default."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(picture, "JPEG")
    # What stands behind a JPEG's end is not read.
    media_text = base64.b64encode(picture.getvalue() + bytes(20 << 20)).decode()
    body = json.dumps({"base64": True, "media": media_text}).encode()
    url = f"http://127.0.0.1:{server.http_port}/v2/models/classification/generate"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=120) as response:
        answer = json.load(response)
    assert answer["error"] == ""
    assert answer["decoder"] == "pillow"
