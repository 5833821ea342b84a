"""python -m scripts.export: the files it writes answer like torch in ONNX Runtime and in OpenCV, and say how
they are fed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, SqueezeExcitation

from model_inference import Model
from pipelines.models.outputs import BoxOutput, LogitOutput
from pipelines.models.spec import Clip, ModelSpec, Preprocessing, TaskName
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.model import ModelSettings
from pipelines.zoo import resolve
from pipelines.zoo.files.onnx_files import read_onnx
from pipelines.zoo.vision.adapters import adapt_detector, detector_preprocessing
from scripts.export import __main__ as export
from scripts.export.graph import Way
from scripts.export.opencv import check_opencv
from tests.conftest import ROOT

CLASSES = 5
FRAME_PX = (32, 48)
# A score of the toy detector that noise reaches and a black picture does not.
SURE = 0.3


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Networks of these tests have the same random weights whatever ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Gated(nn.Module):
    """A classifier with what OpenCV needs to be spelt out: gates by Hardsigmoid without a bias before
    them.
    """

    def __init__(self) -> None:
        super().__init__()
        gate = SqueezeExcitation(8, 4, scale_activation=nn.Hardsigmoid)
        nn.init.zeros_(gate.fc1.bias)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish(), gate)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        answer: Tensor = self.head(self.body(pixels).mean((2, 3)))
        return answer


class Resized(nn.Module):
    """A segmenter of any frame size, with an auxiliary output that is not exported."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, CLASSES, 3, 4, 1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        small = self.body(pixels)
        out = nn.functional.interpolate(small, pixels.shape[-2:], mode="bilinear", align_corners=False)
        return {"out": out, "aux": small}


class Doubtful(nn.Module):
    """Looks at its pixels to decide, which the current exporter cannot write down."""

    def forward(self, pixels: Tensor) -> Tensor:
        means = pixels.mean((2, 3))
        return means if pixels.sum() < 1e9 else -means


def clips() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, 2, 1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d((1, 1, 1)),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


def detector(score: float = 0.0) -> nn.Module:
    """A Faster R-CNN of few layers, as the server has it: it takes prepared pixels."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 16, 7, 8, 3), nn.ReLU())
    setattr(backbone, "out_channels", 16)  # noqa: B010 - a module's own attributes are modules to a type checker
    network = FasterRCNN(
        backbone,
        CLASSES,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((8, 16, 32),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
        box_score_thresh=score,
        # No cuts: which of many equal scores get through is nobody's to say.
        box_detections_per_img=5000,
        rpn_pre_nms_top_n_test=5000,
        rpn_post_nms_top_n_test=5000,
    )
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.weight.mul_(20)
    return adapt_detector(network)


def spec_of(task: TaskName, build: Callable[[], nn.Module], preprocessing: Preprocessing) -> ModelSpec:
    return ModelSpec(
        name=f"toy {task}",
        task=task,
        build=build,
        source="test",
        labels=tuple(f"class {place}" for place in range(CLASSES)),
        preprocessing=preprocessing,
        clip=Clip(length=4, fps=10) if task == "action" else None,
    )


FIXED = Preprocessing(resize_px=FRAME_PX)
SPECS: dict[TaskName, ModelSpec] = {
    "classification": spec_of("classification", Gated, replace(FIXED, channels="BGR")),
    "segmentation": spec_of("segmentation", Resized, Preprocessing(resize_px=40)),
    "action": spec_of("action", clips, FIXED),
}


def served(path: Path) -> Model:
    """The file alone, as a server loads it."""
    return Model(resolve(ModelSettings(source=str(path)), allow_code=False), "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[TaskName, export.Exported]:
    """The toy of each task, exported once."""
    folder = tmp_path_factory.mktemp("exported")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {task: export.export_model(spec, folder / f"{task}.onnx") for task, spec in SPECS.items()}


@pytest.mark.parametrize("task", SPECS)
def test_a_file_answers_like_torch_and_says_how_it_is_fed(
    task: TaskName, files: dict[TaskName, export.Exported]
) -> None:
    exported, spec = files[task], SPECS[task]
    row = exported.row
    assert (row.good, row.exporter, row.dynamic_batch, row.notes) == (True, "torch.export", True, ())
    model = served(exported.path)
    found = replace(model.spec, source=spec.source, output=spec.output, activation=spec.activation)
    assert found == replace(spec, engine="onnxruntime")
    for one in exported.known:
        output = model(one.pixels)
        assert isinstance(output, LogitOutput)
        torch.testing.assert_close(output.logits, one.answer, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", SPECS)
def test_opencv_reads_the_file_and_agrees(task: TaskName, files: dict[TaskName, export.Exported]) -> None:
    exported = files[task]
    agreement, note = check_opencv(exported.path, exported.known)
    assert agreement is not None, note
    assert agreement.good
    assert not list(exported.path.parent.glob("*.folded.onnx"))


def test_answers_are_those_of_the_network_before_it_was_spelt_out(tmp_path: Path) -> None:
    network = Gated().eval()
    picture = torch.randn(1, 3, *FRAME_PX)
    with torch.inference_mode():
        before = network(picture)
    spec = replace(SPECS["classification"], build=lambda: network)
    path = export.export_model(spec, tmp_path / "model.onnx").path
    output = served(path)(picture)
    assert isinstance(output, LogitOutput)
    torch.testing.assert_close(output.logits, before, atol=1e-5, rtol=1e-4)


def test_a_file_tells_nothing_of_the_machine_that_wrote_it(files: dict[TaskName, export.Exported]) -> None:
    path = files["classification"].path
    assert str(ROOT).encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()
    assert {one.key for one in onnx.load(path).metadata_props} == {"trivid", "labels"}


def test_frames_of_any_size_stay_so_and_others_are_fixed(files: dict[TaskName, export.Exported]) -> None:
    assert read_onnx(files["segmentation"].path).inputs[0].dims == (None, 3, None, None)
    assert read_onnx(files["action"].path).inputs[0].dims == (None, 3, 4, *FRAME_PX)


def test_what_the_current_exporter_cannot_the_older_one_does(tmp_path: Path) -> None:
    spec = replace(spec_of("classification", Doubtful, FIXED), labels=())
    exported = export.export_model(spec, tmp_path / "model.onnx")
    assert (exported.row.exporter, exported.row.dynamic_batch) == ("TorchScript", True)
    assert len(exported.row.notes) == 1
    assert exported.row.notes[0].startswith("torch.export with a free batch: ")
    assert "\n" not in exported.row.notes[0]


def test_a_fixed_batch_is_served_in_pieces(tmp_path: Path) -> None:
    ways = [Way(exporter="torch.export", free={})]
    exported = export.export_model(SPECS["classification"], tmp_path / "model.onnx", ways=ways)
    assert not exported.row.dynamic_batch
    assert read_onnx(exported.path).inputs[0].dims == (1, 3, *FRAME_PX)
    assert len(served(exported.path)(torch.ones(5, 3, *FRAME_PX))) == 5


def test_the_older_exporter_writes_the_same_network(tmp_path: Path) -> None:
    ways = [Way(exporter="TorchScript", free={0: "batch"})]
    exported = export.export_model(SPECS["classification"], tmp_path / "model.onnx", opset=17, ways=ways)
    assert (exported.row.opset, exported.row.dynamic_batch, exported.row.top1_equal) == (17, True, 1)


def test_what_no_exporter_can_is_one_line(tmp_path: Path) -> None:
    class Chatty(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            values: Tensor = torch.linalg.eigvals(pixels[:, :, :3, :3]).real
            return values.flatten(1)

    spec = replace(spec_of("classification", Chatty, FIXED), labels=())
    with pytest.raises(ModelUnavailable, match="toy classification cannot be exported: ") as caught:
        export.export_model(spec, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


def test_a_detector_is_exported_for_one_picture_of_one_size(tmp_path: Path) -> None:
    spec = spec_of("detection", detector, detector_preprocessing(detector()))
    exported = export.export_model(spec, tmp_path / "model.onnx")
    assert not exported.row.dynamic_batch
    assert read_onnx(exported.path).inputs[0].dims == (1, 3, 64, 96)
    fitted = served(exported.path).spec.preprocessing
    assert (fitted.resize_px, fitted.fit, fitted.pad_value) == ((64, 96), "letterbox", 114)
    agreement, note = check_opencv(exported.path, exported.known)
    assert agreement is None
    assert note


def test_an_exported_detector_may_find_nothing(tmp_path: Path) -> None:
    spec = spec_of("detection", partial(detector, SURE), detector_preprocessing(detector()))
    exported = export.export_model(spec, tmp_path / "model.onnx")
    black, noise = torch.zeros(1, 3, 64, 96), exported.known[0].pixels
    output = served(exported.path)(torch.cat([black, noise, black]))
    assert isinstance(output, BoxOutput)
    counts = [len(frame["boxes"]) for frame in output.frames]
    assert counts[0] == counts[2] == 0
    assert counts[1] == len(exported.known[0].answer[0]["boxes"]) > 0


def test_the_script_exports_checks_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--weights", "random", "--output", str(tmp_path), "--report-only"]
    assert export.main(["squeezenet1_1", *asked]) == 0
    assert export.main(["squeezenet9", *asked, "--report", str(tmp_path / "else.md")]) == 1
    assert {one.name for one in tmp_path.iterdir()} == {"report.md", "report.json", "else.md"}
    rows = {row["model"]: row for row in json.loads((tmp_path / "report.json").read_text())["rows"]}
    known = rows["squeezenet1_1"]
    assert (known["exporter"], known["dynamic_batch"], known["top1_equal"]) == ("torch.export", True, 1.0)
    assert max(known["ort_max_delta"], known["opencv_max_delta"]) <= 1e-3
    assert "squeezenet1_0" in " ".join(rows["squeezenet9"]["notes"])
    assert "| squeezenet1_1 | classification | torch.export |" in (tmp_path / "report.md").read_text()
    assert "| squeezenet9 |" in (tmp_path / "else.md").read_text()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "FAIL"]
