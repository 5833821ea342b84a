"""Detection in a loop by hand, as one writes it with OpenCV and ONNX Runtime.

`cv2.VideoCapture` decodes, `cv2.resize` and a canvas of 114 prepare, an `InferenceSession` computes, NumPy
and `cv2.dnn` read the boxes, frame by frame. Knows networks of one family only: YOLOX with cells to decode.

Each client is a thread. All share one session, and a call of it or of OpenCV has one thread. On two cores,
with four clients, this took the least processor time for a frame. Tried besides: a process for each client,
sessions of their own, and the libraries' defaults, by which each call uses threads of all cores. A clip
comes, and the boxes of all its frames go, by HTTP, which hardly costs the loop anything.
"""

from __future__ import annotations

import http.server
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime

from scripts.bench.peers.arguments import arguments

SCORE_THRESHOLD, IOU_THRESHOLD = 0.5, 0.45
STRIDES, PADDING = (8, 16, 32), 114

Array = npt.NDArray[Any]


class Detector:
    """A YOLOX network: frames in, boxes out. Threads may share it.

    Raises:
        SystemExit: the file's network is none of these.
    """

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (self.input, *_), (output, *_) = self.session.get_inputs(), self.session.get_outputs()
        sides = self.input.shape[2:]
        if not all(isinstance(side, int) for side in sides):
            raise SystemExit(f"error: {path} takes pixels {self.input.shape}, not of one size")
        self.size_hw = sides[0], sides[1]
        shapes = [(sides[0] // stride, sides[1] // stride) for stride in STRIDES]
        cells = [np.indices(shape)[::-1].reshape(2, -1).T for shape in shapes]
        self.cells = np.concatenate(cells).astype(np.float32)
        self.strides = np.repeat(np.asarray(STRIDES, np.float32), [len(one) for one in cells])[:, None]
        if output.shape[1] != len(self.cells):
            raise SystemExit(f"error: {path} gives {output.shape}, not the {len(self.cells)} cells of YOLOX")

    def __call__(self, frame_hwc: Array) -> dict[str, Any]:
        """Boxes (left, top, right, bottom) in pixels of a frame uint8 `(H, W, 3)` BGR, scores and labels."""
        pixels, ratio = self.letterbox(frame_hwc)
        (rows,) = self.session.run(None, {self.input.name: pixels})[0]
        likely = rows[:, 4] > SCORE_THRESHOLD
        rows, cells, strides = rows[likely], self.cells[likely], self.strides[likely]
        labels = rows[:, 5:].argmax(1)
        scores = rows[:, 4] * rows[:, 5:].max(1)
        sizes = np.exp(rows[:, 2:4]) * strides / ratio
        corners = (rows[:, :2] + cells) * strides / ratio - sizes / 2
        boxes = np.hstack([corners, sizes]).tolist()
        kept = cv2.dnn.NMSBoxesBatched(
            boxes, scores.tolist(), labels.tolist(), SCORE_THRESHOLD, IOU_THRESHOLD
        )
        return {
            "boxes": [[*corners[one].tolist(), *(corners[one] + sizes[one]).tolist()] for one in kept],
            "scores": [float(scores[one]) for one in kept],
            "labels": [int(labels[one]) for one in kept],
        }

    def letterbox(self, frame_hwc: Array) -> tuple[Array, float]:
        """The network's pixels float32 `(1, 3, h, w)`, 0 to 255, and by how much the frame was resized."""
        height_px, width_px = frame_hwc.shape[:2]
        ratio = min(self.size_hw[0] / height_px, self.size_hw[1] / width_px)
        resized = cv2.resize(frame_hwc, (int(width_px * ratio), int(height_px * ratio)))
        canvas = np.full((*self.size_hw, 3), PADDING, np.uint8)
        canvas[: resized.shape[0], : resized.shape[1]] = resized
        return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], np.float32), ratio


def frames(path: str) -> Iterator[Array]:
    """Frames of a video file uint8 `(H, W, 3)` BGR."""
    video = cv2.VideoCapture(path)
    while True:
        more, frame_hwc = video.read()
        if not more:
            video.release()
            return
        yield frame_hwc


def handler(detector: Detector) -> type[http.server.BaseHTTPRequestHandler]:
    """Answers a form that holds a medium with a row for each frame, over connections that stay open."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(b"ok")

        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"]))
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "medium")
                path.write_bytes(form[form.index(b"\r\n\r\n") + 4 : form.rindex(b"\r\n--")])
                self.answer(json.dumps({"rows": [*map(detector, frames(str(path)))]}).encode())

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing: a line for each request tells nobody anything."""

    return Handler


if __name__ == "__main__":
    asked = arguments()
    if asked.device != "cpu":
        raise SystemExit(f"error: the loop computes on the CPU only, not on {asked.device}")
    cv2.setNumThreads(1)
    address = ("127.0.0.1", asked.ports[0])
    http.server.ThreadingHTTPServer(address, handler(Detector(asked.model))).serve_forever()
