"""Models in files: each form answers as its module, and none runs code unless the user vouches for it."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_inference import Model
from pipelines.models.outputs import LogitOutput
from pipelines.models.spec import ModelSpec, Preprocessing
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.model import ModelSettings
from pipelines.zoo import resolve
from pipelines.zoo.files.facts import facts_to_json

SIDE_PX = 32
PIXELS = torch.randn(3, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(1))
FACTS = Preprocessing(resize_px=(SIDE_PX, SIDE_PX), mean=(0.5,) * 3, std=(0.25,) * 3)


class Toy(nn.Module):
    """Three classes from small pictures, with weights of a seed."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.body = nn.Conv2d(3, 8, 3, stride=2)
            self.norm = nn.BatchNorm2d(8)
            self.head = nn.Linear(8, classes)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.body(pixels)).relu().mean((2, 3)))
        return logits


def toy_spec() -> ModelSpec:
    return ModelSpec(
        name="toy",
        task="classification",
        build=Toy,
        source="a test",
        labels=("a", "b", "c"),
        preprocessing=FACTS,
    )


def save_exported(path: Path, facts: str = "", network: nn.Module | None = None) -> None:
    free = {0: torch.export.Dim("batch")}
    program = torch.export.export(network or Toy(), (PIXELS,), dynamic_shapes=(free,))
    torch.export.save(program, path, extra_files={"trivid": facts} if facts else None)


def save_script(path: Path, facts: str = "") -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.trace(Toy(), PIXELS)  # type: ignore[no-untyped-call]
        torch.jit.save(script, path, _extra_files={"trivid": facts} if facts else {})


def save_onnx(path: Path, facts: str = "") -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Toy(), (PIXELS,), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        assert program is not None
        program.save(buffer)  # type: ignore[arg-type]
    model = onnx.load_from_string(buffer.getvalue())
    if facts:
        model.metadata_props.add(key="trivid", value=facts)
    path.write_bytes(model.SerializeToString())


FORMS: dict[str, Callable[..., None]] = {
    "toy.pt2": save_exported,
    "toy.pt": save_script,
    "toy.ts": save_script,
    "toy.onnx": save_onnx,
}


TASK = "classification"
PROGRAMS = ("toy.pt2", "toy.pt", "toy.ts")


def spec_of(source: object, allow_code: bool = False, **options: Any) -> ModelSpec:
    return resolve(ModelSettings(source=str(source), **options), allow_code=allow_code)


def error_of(source: object, allow_code: bool = False, **options: Any) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        Model(spec_of(source, allow_code, **options), "cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "assumed"),
    [
        ({}, "values of 0..1 (--pixels); RGB (--channels); stretched (fit in a settings file)"),
        ({"resize_px": (40,)}, "values of 0..1 (--pixels); RGB (--channels)"),
        ({"std": 0.5, "channels": "BGR"}, "values of 0..1 (--pixels); stretched (fit in a settings file)"),
        ({"mean": 0.5, "std": 0.5}, ""),
        ({"pixels": "signed"}, ""),
    ],
)
def test_what_is_assumed_of_a_file_that_says_nothing_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], assumed: str
) -> None:
    FORMS["toy.pt2"](tmp_path / "toy.pt2", None)
    spec = spec_of(tmp_path / "toy.pt2", allow_code=True, task="classification", **options)
    assert spec.preprocessing.resize_px == (40 if "resize_px" in options else (SIDE_PX, SIDE_PX))
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.endswith(f"assumed: {assumed}") for text in told] == ([True] if assumed else [])
    assert "; ".join(spec.assumed) == assumed


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_answers(spec: ModelSpec) -> None:
    for count in (1, 3):
        answer = Model(spec, "cpu")(PIXELS[:count])
        assert isinstance(answer, LogitOutput)
        torch.testing.assert_close(answer.logits, Toy()(PIXELS[:count]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_with_facts_needs_no_options(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form, facts_to_json(toy_spec()))
    spec = spec_of(tmp_path / form, allow_code=form in PROGRAMS)
    assert (spec.task, spec.labels, spec.preprocessing) == ("classification", ("a", "b", "c"), FACTS)
    check_answers(spec)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_without_facts_takes_them_from_options(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form)
    allow_code = form in PROGRAMS
    if form == "toy.onnx":
        assert "does not state its task" in error_of(tmp_path / form, allow_code)
    options: dict[str, Any] = {"resize_px": (SIDE_PX, SIDE_PX), "mean": (0.5,), "std": (0.25,)}
    spec = spec_of(tmp_path / form, allow_code, task="classification", **options)
    assert spec.preprocessing == FACTS
    check_answers(spec)


@pytest.mark.parametrize("form", FORMS)
def test_a_size_that_a_file_fixes_need_not_be_said(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form)
    if form in ("toy.pt", "toy.ts"):
        assert "its input size is missing; give --resize-px" in error_of(
            tmp_path / form, True, task="classification"
        )
    else:
        plain = Preprocessing(resize_px=(SIDE_PX, SIDE_PX), mean=(0.0,) * 3, std=(1.0,) * 3)
        spec = spec_of(tmp_path / form, form in PROGRAMS, task="classification")
        assert spec.preprocessing == plain


@pytest.mark.parametrize("form", ["toy.pt2", "toy.ts", "toy.onnx"])
def test_a_wrong_rank_or_task_is_named(tmp_path: Path, form: str) -> None:
    options: dict[str, Any] = {"allow_code": form in PROGRAMS}
    FORMS[form](tmp_path / form, facts_to_json(toy_spec()))
    text = error_of(tmp_path / form, task="detection", **options)
    assert "toy is a classification model, not detection" in text
    FORMS[form](tmp_path / form)
    options["resize_px"] = (SIDE_PX, SIDE_PX)
    text = error_of(tmp_path / form, task="segmentation", **options)
    assert "none of its outputs fits the task segmentation: " in text
    text = error_of(tmp_path / form, task="action", clip_length=4, clip_fps=15.0, **options)
    assert f"does not take pixels (2, 3, 4, {SIDE_PX}, {SIDE_PX}) as task action gives them" in text


@pytest.mark.parametrize("form", [*FORMS, "toy.pth", "toy.safetensors"])
def test_another_file_than_pinned_is_not_opened(tmp_path: Path, form: str) -> None:
    (tmp_path / form).write_bytes(b"others")
    text = error_of(tmp_path / form, sha256="AB" * 32, arch="resnet18")
    assert f"expected sha256 {'ab' * 32}, found 01db91d06032cc64" in text


@pytest.mark.parametrize("form", PROGRAMS)
def test_a_program_is_loaded_only_if_the_user_vouches_for_it(tmp_path: Path, form: str) -> None:
    file = tmp_path / form
    FORMS[form](file, facts_to_json(toy_spec()))
    text = error_of(file)
    for part in (f"{file} is a program, which can run code when it is loaded", "--allow-code", "--sha256"):
        assert part in text
    assert "`sha256sum FILE`" in text
    assert sha256_of(file) not in text, "or it would be pinned without a look"
    check_answers(spec_of(file, allow_code=True))
    check_answers(spec_of(file, sha256=sha256_of(file).upper()))
    for allow_code in (False, True):
        assert f"expected sha256 {'ab' * 32}, found" in error_of(file, allow_code, sha256="ab" * 32)


@pytest.mark.parametrize("form", [*PROGRAMS, "toy.onnx"])
def test_a_file_is_checked_again_when_it_is_loaded(tmp_path: Path, form: str) -> None:
    file = tmp_path / form
    FORMS[form](file, facts_to_json(toy_spec()))
    spec = spec_of(file, sha256=sha256_of(file))
    file.write_bytes(b"others")
    with pytest.raises(ModelUnavailable, match="is not the pinned file"):
        spec.build()


@pytest.mark.parametrize("form", [*FORMS, "toy.pth", "toy.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, form: str) -> None:
    (tmp_path / form).write_bytes(b"no model")
    for allow_code in (False, True):
        text = error_of(tmp_path / form, allow_code, task="classification", arch="squeezenet1_1")
        assert str(tmp_path / form) in text


@pytest.mark.parametrize("form", PROGRAMS)
def test_a_damaged_program_is_an_error_of_one_line(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form, facts_to_json(toy_spec()))
    data = (tmp_path / form).read_bytes()
    headless = data.replace(b"PK\x03\x04", b"PK\x03\x05", 3)
    for changed in (b"", data[: len(data) // 2], data[:-9], data[99:], headless):
        (tmp_path / form).write_bytes(changed)
        for options in ({}, {"arch": "squeezenet1_1"}):
            assert str(tmp_path / form) in error_of(tmp_path / form, True, task="classification", **options)


def test_a_state_dict_needs_its_network(tmp_path: Path) -> None:
    torch.save(Toy().state_dict(), tmp_path / "toy.pt")
    assert "name its network: --arch" in error_of(tmp_path / "toy.pt")


class WritesAFile:
    """Unpickled, it writes a file: code that a pickle carries."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["evil.pth", "evil.pt", "evil.ts", "evil.bin"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_that_carries_code_is_refused_before_it_runs(tmp_path: Path, form: str, writer: str) -> None:
    mark = tmp_path / "mark"
    evil = {"weight": WritesAFile(mark)}
    file = tmp_path / form
    file.write_bytes(pickle.dumps(evil)) if writer == "pickle" else torch.save(evil, file)
    vouched: tuple[dict[str, Any], ...] = ({}, {"allow_code": True}, {"sha256": sha256_of(file)})
    for text in (
        error_of("squeezenet1_1", weights=str(file)),
        *(error_of(file, arch="squeezenet1_1", **more) for more in vouched if form != "evil.bin"),
    ):
        assert "without running code" in text
    assert not mark.exists()
    pickle.loads(file.read_bytes()) if writer == "pickle" else torch.load(file, weights_only=False)
    assert mark.exists(), "or this test shows nothing"


def rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy of an archive with changed members."""
    evil = path.with_name(f"evil{path.suffix}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(evil, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return evil


def test_a_program_that_runs_code_runs_none_before_the_user_vouches_for_it(tmp_path: Path) -> None:
    save_exported(tmp_path / "toy.pt2", facts_to_json(toy_spec()))
    mark = tmp_path / "mark"
    guard = f"__import__('pathlib').Path({str(mark)!r}).touch() == None"

    def guarded(name: str, data: bytes) -> bytes:
        if "/models/" not in name:
            return data
        return json.dumps({**json.loads(data), "guards_code": [guard]}).encode()

    evil = rewritten(tmp_path / "toy.pt2", guarded)
    assert "can run code" in error_of(evil)
    # Its facts are read, for which nothing of it runs.
    spec = spec_of(evil, allow_code=True)
    assert not mark.exists()
    Model(spec, "cpu")
    assert mark.exists(), "or this test shows nothing"


def test_facts_and_graphs_that_would_fill_the_memory_are_not_read(tmp_path: Path) -> None:
    save_exported(tmp_path / "toy.pt2")
    huge = b" " * ((64 << 20) + 1)
    for name, most in (("models/model.json", 64 << 20), ("extra/trivid", 16 << 20)):
        with zipfile.ZipFile(tmp_path / "evil.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"toy/{name}", huge)
        text = error_of(tmp_path / "evil.pt2", allow_code=True)
        assert f"toy/{name} has 67108865 bytes, more than {most}" in text


@pytest.mark.parametrize("graph", [b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b"\xff{}", b"{"])
def test_a_graph_that_is_no_json_is_named(tmp_path: Path, graph: bytes) -> None:
    save_exported(tmp_path / "toy.pt2", facts_to_json(toy_spec()))
    evil = rewritten(tmp_path / "toy.pt2", lambda name, data: graph if "/models/" in name else data)
    assert "cannot read" in error_of(evil, allow_code=True)


def test_a_state_dict_that_is_compressed_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "plain.pth")
    packed = zipfile.ZipFile(tmp_path / "evil.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    text = error_of(tmp_path / "evil.pth", allow_code=True, arch="squeezenet1_1")
    assert "is compressed, which torch never does" in text


def test_a_program_of_one_picture_is_served_one_by_one(tmp_path: Path) -> None:
    program = torch.export.export(Toy(), (PIXELS[:1],))
    for facts in ({}, {"trivid": facts_to_json(toy_spec())}):
        torch.export.save(program, tmp_path / "one.pt2", extra_files=dict(facts))
        spec = spec_of(tmp_path / "one.pt2", allow_code=True, task="classification")
        assert (spec.max_batch, spec.preprocessing.resize_px) == (1, (SIDE_PX, SIDE_PX))
        answer = Model(spec, "cpu")(PIXELS[:1])
        assert isinstance(answer, LogitOutput)
        torch.testing.assert_close(answer.logits, Toy()(PIXELS[:1]), rtol=1e-4, atol=1e-5)


def test_sizes_that_are_free_stay_free(tmp_path: Path) -> None:
    auto = torch.export.Dim.AUTO
    network = nn.Sequential(
        nn.Conv2d(3, 3, 3, stride=2), nn.AdaptiveAvgPool2d(3), nn.Upsample(scale_factor=2.5)
    )
    program = torch.export.export(network.eval(), (PIXELS,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    torch.export.save(program, tmp_path / "free.pt2")
    spec = spec_of(tmp_path / "free.pt2", True, task="segmentation", resize_px=(40, 48))
    assert [facts.dims for facts in Model(spec, "cpu").outputs] == [(3, None, None)]


def test_facts_that_are_damaged_are_named(tmp_path: Path) -> None:
    facts = json.loads(facts_to_json(toy_spec()))
    facts["preprocessing"]["mean"] = "grey"
    save_exported(tmp_path / "toy.pt2", json.dumps(facts))
    assert "preprocessing.mean" in error_of(tmp_path / "toy.pt2", allow_code=True)
