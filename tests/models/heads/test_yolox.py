"""YOLOX: a real network's answers on real frames, and the same cells decoded one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.frames.geometry import geometry
from pipelines.frames.preprocess import Preprocessor
from pipelines.models.heads.yolox import Yolox
from pipelines.protocol.errors import ModelUnavailable
from tests.support.detections import assert_equal, film_frame, found_in, suppressed

PERSON, DOG, BOTTLE = 0, 16, 39
# Measured with ONNX Runtime and OpenCV; scores to within 0.05.
SEEN: list[tuple[str, int, list[tuple[int, float, list[float]]]]] = [
    (
        "woman_dog_720p.mp4",
        144,
        [(PERSON, 0.88, [149, 199, 388, 551]), (DOG, 0.84, [442, 378, 764, 563])],
    ),
    (
        "bottles_360p.mp4",
        0,
        [
            (BOTTLE, 0.93, [509, 106, 571, 318]),
            (BOTTLE, 0.92, [286, 109, 344, 315]),
            (BOTTLE, 0.92, [57, 109, 123, 316]),
        ],
    ),
]


@pytest.fixture(scope="module")
def real(shared_media: Path) -> Path:
    """The folder of real media, whose `models` has a YOLOX."""
    if not (shared_media / "models" / "yolox_nano.onnx").is_file():
        pytest.skip("no yolox_nano.onnx among the shared models")
    return shared_media


def prepared(frame_nhwc: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], size_hw: tuple[int, int]) -> Tensor:
    return Preprocessor(Yolox().pixels(size_hw), device="cpu", max_frames=1)(frame_nhwc)


def raw_output(real: Path, clip: str, number: int) -> Tensor:
    session = onnxruntime.InferenceSession(
        str(real / "models" / "yolox_nano.onnx"), providers=["CPUExecutionProvider"]
    )
    pixels = prepared(film_frame(real / "clips" / clip, number), (416, 416))
    return torch.from_numpy(session.run(None, {"images": pixels.numpy()})[0])


def decoded_cell_by_cell(raw_nac: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Rows with boxes of cx, cy, w, h in pixels, as the readme of the file has them."""
    rows = raw_nac.numpy().copy()
    place = 0
    for stride in (8, 16, 32):
        for top in range(0, size_hw[0], stride):
            for left in range(0, size_hw[1], stride):
                rows[:, place, 0] = rows[:, place, 0] * stride + left
                rows[:, place, 1] = rows[:, place, 1] * stride + top
                rows[:, place, 2:4] = np.exp(rows[:, place, 2:4]) * stride
                place += 1
    assert place == rows.shape[1]
    return torch.from_numpy(rows)


def drawn(pictures: int, size_hw: tuple[int, int], classes: int, seed: int) -> Tensor:
    """What a network of untrained boxes gives."""
    generator = torch.Generator().manual_seed(seed)
    rows = sum((size_hw[0] // stride) * (size_hw[1] // stride) for stride in (8, 16, 32))
    boxes = torch.randn(pictures, rows, 4, generator=generator)
    scores = torch.rand(pictures, rows, 1 + classes, generator=generator) ** 2
    return torch.cat([boxes, scores], dim=2)


@pytest.mark.parametrize(("clip", "number", "objects"), SEEN, ids=[clip for clip, *_ in SEEN])
def test_a_real_network_finds_what_was_measured(
    real: Path, clip: str, number: int, objects: list[tuple[int, float, list[float]]]
) -> None:
    raw_nac = raw_output(real, clip, number)
    (found,) = Yolox(classes=80)({"output": raw_nac}, (416, 416))
    frame_hw = film_frame(real / "clips" / clip, number).shape[1:3]
    view = geometry(Yolox().pixels((416, 416)), *frame_hw)
    in_frame = {**found, "boxes": torch.from_numpy(view.to_source_xy(found["boxes"].numpy()))}
    for label, score, box in objects:
        assert found_in(in_frame, label, box) == pytest.approx(score, abs=0.05)
    assert (
        found["scores"] >= 0.4
    ).sum() <= 3  # nothing twice: each of them, and maybe shoes taken for wheels


def test_real_rows_are_as_decoded_one_by_one_and_suppressed_by_another_runtime(real: Path) -> None:
    raw_nac = raw_output(real, "woman_dog_720p.mp4", 144)
    rows = decoded_cell_by_cell(raw_nac, (416, 416))
    (found,) = Yolox()({"output": raw_nac}, (416, 416))
    assert_equal([found], Yolox(decoded=True)({"output": rows}, (416, 416)), atol=1e-3)
    (kept,) = suppressed(rows[..., :4], rows[..., 5:] * rows[..., 4:5], 0.45)
    assert found["labels"].tolist() == [label for _, label in kept]
    centre = (found["boxes"][:, :2] + found["boxes"][:, 2:]) / 2
    torch.testing.assert_close(centre, rows[0, [row for row, _ in kept], :2], rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_wide_input_has_grids_as_wide(real: Path) -> None:
    """The same weights as TorchScript take any size: the frame without its bars."""
    network = torch.jit.load(str(real / "models" / "yolox_nano.torchscript.pt"))  # type: ignore[no-untyped-call]
    size_hw = (256, 416)
    frame = film_frame(real / "clips" / "woman_dog_720p.mp4", 144)
    with torch.inference_mode():
        raw_nac = network(prepared(frame, size_hw))
    (found,) = Yolox(classes=80)({"output": raw_nac}, size_hw)
    view = geometry(Yolox().pixels(size_hw), *frame.shape[1:3])
    in_frame = {**found, "boxes": torch.from_numpy(view.to_source_xy(found["boxes"].numpy()))}
    assert found_in(in_frame, PERSON, [149, 199, 388, 551]) == pytest.approx(0.88, abs=0.05)
    assert found_in(in_frame, DOG, [442, 378, 764, 563]) == pytest.approx(0.84, abs=0.05)


@given(
    st.integers(1, 3), st.sampled_from([(64, 96), (96, 64), (32, 32)]), st.integers(1, 4), st.integers(0, 999)
)
@settings(deadline=None, max_examples=25)
def test_raw_cells_are_what_decoded_ones_are(
    pictures: int, size_hw: tuple[int, int], classes: int, seed: int
) -> None:
    raw_nac = drawn(pictures, size_hw, classes, seed)
    rows = decoded_cell_by_cell(raw_nac, size_hw)
    found = Yolox(classes=classes)({"output": raw_nac}, size_hw)
    assert_equal(found, Yolox(decoded=True)({"output": rows}, size_hw), atol=1e-3)
    one_by_one = [Yolox()({"output": raw_nac[one : one + 1]}, size_hw)[0] for one in range(pictures)]
    assert_equal(found, one_by_one)


def test_large_networks_have_a_fourth_grid() -> None:
    rows = 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2
    raw_nac = torch.zeros(1, rows, 6)
    raw_nac[0, -1] = torch.tensor([0.5, 0.5, 0, 0, 0.9, 1])
    (found,) = Yolox()({"output": raw_nac}, (128, 128))
    assert found["boxes"].tolist() == [[64.0, 64, 128, 128]]


def test_sides_that_overflow_are_left_out() -> None:
    raw_nac = drawn(1, (32, 32), 2, 0)
    raw_nac[0, 3, 2:4] = 1000
    raw_nac[0, 3, 4:] = 1
    (found,) = Yolox()({"output": raw_nac}, (32, 32))
    assert found["boxes"].isfinite().all()
    assert len(found["boxes"])


@pytest.mark.parametrize(
    ("head", "shape", "says"),
    [
        (Yolox(), (1, 2100, 85), "3549 rows for 416x416 px"),
        (Yolox(), (1, 2100, 85), "(1, 2100, 85) has 2100"),
        (
            Yolox(classes=3),
            (1, 3549, 85),
            "(N, A, 8): box, objectness and 3 classes; the model gives o (1, 3549, 85)",
        ),
        (
            Yolox(decoded=True),
            (1, 3549, 5),
            "(N, A, 5 + K): box, objectness and K classes; the model gives o (1, 3549, 5)",
        ),
        (Yolox(output="o"), (3549, 85), "the model gives o (3549, 85)"),
        (Yolox(output="boxes"), (1, 3549, 85), "in output boxes; the model gives o (1, 3549, 85)"),
    ],
)
def test_other_outputs_are_refused_by_their_shapes(head: Yolox, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ModelUnavailable) as raised:
        head({"o": torch.zeros(shape)}, (416, 416))
    assert says in raised.value.message
    assert "--head" in raised.value.hint


def test_of_several_outputs_the_first_that_fits_is_read() -> None:
    raw_nac = drawn(2, (32, 32), 2, 0)
    outputs = {"features": torch.zeros(2, 8, 4, 4), "other": torch.zeros(2, 21, 9), "output": raw_nac}
    assert_equal(Yolox(classes=2)(outputs, (32, 32)), Yolox()({"output": raw_nac}, (32, 32)))
    assert Yolox().with_classes(2) == Yolox(classes=2)


@pytest.mark.gpu
def test_a_gpu_finds_the_same() -> None:
    raw_nac = drawn(3, (64, 96), 4, 0)
    found = Yolox()({"output": raw_nac.cuda()}, (64, 96))
    assert found[0]["boxes"].is_cuda
    assert_equal(found, Yolox()({"output": raw_nac}, (64, 96)), atol=1e-3)
