"""Models in files: each form answers as the module that it was made of, and none does more than compute."""

from __future__ import annotations

import io
import json
import pickle
import re
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
SYMBOL = r"Symbol\('s\d+', positive=True, integer=True\)"
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


def spec_of(source: object, allow_code: bool = False, **options: Any) -> ModelSpec:
    return resolve(ModelSettings(source=str(source), **options), allow_code=allow_code)


def error_of(source: object, allow_code: bool = False, **options: Any) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        Model(spec_of(source, allow_code, **options), "cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_answers(spec: ModelSpec) -> None:
    for count in (1, 3):
        answer = Model(spec, "cpu")(PIXELS[:count])
        assert isinstance(answer, LogitOutput)
        torch.testing.assert_close(answer.logits, Toy()(PIXELS[:count]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_with_facts_needs_no_options(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form, facts_to_json(toy_spec()))
    spec = spec_of(tmp_path / form)
    assert (spec.task, spec.labels, spec.preprocessing) == ("classification", ("a", "b", "c"), FACTS)
    check_answers(spec)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_without_facts_takes_them_from_options(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form)
    assert "does not say what its task is" in error_of(tmp_path / form)
    spec = spec_of(
        tmp_path / form, task="classification", resize_px=(SIDE_PX, SIDE_PX), mean=(0.5,), std=(0.25,)
    )
    assert spec.preprocessing == FACTS
    check_answers(spec)


@pytest.mark.parametrize("form", FORMS)
def test_a_size_that_a_file_fixes_need_not_be_said(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form)
    if form in ("toy.pt", "toy.ts"):
        assert "resize_px is missing" in error_of(tmp_path / form, task="classification")
    else:
        plain = Preprocessing(resize_px=(SIDE_PX, SIDE_PX), mean=(0.0,) * 3, std=(1.0,) * 3)
        assert spec_of(tmp_path / form, task="classification").preprocessing == plain


@pytest.mark.parametrize("form", ["toy.pt2", "toy.ts", "toy.onnx"])
def test_a_wrong_rank_or_task_is_named(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form, facts_to_json(toy_spec()))
    assert "toy is a classification model, not detection" in error_of(tmp_path / form, task="detection")
    FORMS[form](tmp_path / form)
    options: dict[str, Any] = {"resize_px": (SIDE_PX, SIDE_PX)}
    text = error_of(tmp_path / form, task="segmentation", **options)
    assert "(2, 3), task segmentation needs (N, K, h, w)" in text
    text = error_of(tmp_path / form, task="action", clip_length=4, clip_fps=15.0, **options)
    assert f"does not take pixels (2, 3, 4, {SIDE_PX}, {SIDE_PX}) as task action gives them" in text


@pytest.mark.parametrize("form", [*FORMS, "toy.pth", "toy.safetensors"])
def test_another_file_than_pinned_is_not_opened(tmp_path: Path, form: str) -> None:
    (tmp_path / form).write_bytes(b"others")
    text = error_of(tmp_path / form, sha256="AB" * 32, arch="resnet18")
    assert f"expected sha256 {'ab' * 32}, found 01db91d06032cc64" in text


def test_a_file_is_checked_again_when_it_is_loaded(tmp_path: Path) -> None:
    import hashlib

    file = tmp_path / "toy.pt2"
    save_exported(file, facts_to_json(toy_spec()))
    spec = spec_of(file, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    check_answers(spec)
    file.write_bytes(b"others")
    with pytest.raises(ModelUnavailable, match="is not the pinned file"):
        spec.build()


@pytest.mark.parametrize("form", [*FORMS, "toy.pth", "toy.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, form: str) -> None:
    (tmp_path / form).write_bytes(b"no model")
    text = error_of(tmp_path / form, task="classification", arch="squeezenet1_1")
    assert str(tmp_path / form) in text


def test_a_state_dict_needs_its_network(tmp_path: Path) -> None:
    torch.save(Toy().state_dict(), tmp_path / "toy.pt")
    assert "say whose it is: --arch" in error_of(tmp_path / "toy.pt")


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
    for text in (
        error_of("squeezenet1_1", weights=str(file)),
        error_of(file, arch="squeezenet1_1") if form != "evil.bin" else "without running code",
    ):
        assert "without running code" in text
    assert not mark.exists()
    pickle.loads(file.read_bytes()) if writer == "pickle" else torch.load(file, weights_only=False)
    assert mark.exists(), "or this test shows nothing"


def rewritten(
    path: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None
) -> Path:
    """A copy of an archive with changed members."""
    evil = path.with_name(f"evil{path.suffix}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(evil, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, data in (extra or {}).items():
            new.writestr(f"{root}/{name}", data)
    return evil


def in_graph(old: str, new: str) -> Callable[[str, bytes], bytes]:
    """Replaces the first match of a pattern in the graph of an exported program."""

    def change(name: str, data: bytes) -> bytes:
        if "/models/" not in name:
            return data
        changed, count = re.subn(old.encode(), new.encode(), data, count=1)
        assert count, f"the graph has no {old}"
        return changed

    return change


def test_an_exported_program_whose_pickle_carries_code_is_refused(tmp_path: Path) -> None:
    save_exported(tmp_path / "toy.pt2", facts_to_json(toy_spec()))
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save((WritesAFile(mark),), buffer)
    evil = rewritten(
        tmp_path / "toy.pt2", lambda name, data: buffer.getvalue() if "sample_inputs" in name else data
    )
    assert "holds a pickle that carries code" in error_of(evil)
    assert not mark.exists()
    # It is no program's input, so loading fails in the end.
    with pytest.raises(ModelUnavailable, match="as an exported program"):
        spec_of(evil, allow_code=True).build()
    assert mark.exists(), "or this test shows nothing"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"torch\.ops\.aten\.relu\.default", "torch.os.system", "calls 'torch.os.system', no operator"),
        (r"torch\.ops\.aten\.relu\.default", "torch.ops.aten.from_file.default", "no operator of PyTorch's"),
        (r"torch\.ops\.aten\.relu\.default", "torch.ops.load_library", "no operator of PyTorch's"),
        (
            SYMBOL,
            "__import__('os').getpid()",
            "is no expression of sizes",
        ),
        (
            SYMBOL,
            "Symbol('s77').func.__class__",
            "no expression of sizes",
        ),
        ('"name": "conv2d"', '"name": "conv2d = print(1)"', "is no name"),
    ],
)
def test_an_exported_program_that_would_call_functions_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    save_exported(tmp_path / "toy.pt2", facts_to_json(toy_spec()))
    evil = rewritten(tmp_path / "toy.pt2", in_graph(old, new))
    assert message in error_of(evil)


def test_native_code_in_an_exported_program_is_refused(tmp_path: Path) -> None:
    save_exported(tmp_path / "toy.pt2", facts_to_json(toy_spec()))
    evil = rewritten(
        tmp_path / "toy.pt2", lambda _name, data: data, {"data/aotinductor/model/model.so": b"\x7fELF"}
    )
    assert "holds native code" in error_of(evil)


def test_torchscript_that_would_write_files_is_refused(tmp_path: Path) -> None:
    save_script(tmp_path / "toy.ts", facts_to_json(toy_spec()))

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith(".py"):
            return data
        return data.replace(b"  return", b'  torch.save(x, "mark")\n  return', 1)

    evil = rewritten(tmp_path / "toy.ts", change)
    assert "its code names save, an operator that touches files" in error_of(evil)


def test_sizes_that_are_free_pass_the_checks(tmp_path: Path) -> None:
    auto = torch.export.Dim.AUTO
    network = nn.Sequential(
        nn.Conv2d(3, 3, 3, stride=2), nn.AdaptiveAvgPool2d(3), nn.Upsample(scale_factor=2.5)
    )
    program = torch.export.export(network.eval(), (PIXELS,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    torch.export.save(program, tmp_path / "free.pt2")
    spec = spec_of(tmp_path / "free.pt2", task="segmentation", resize_px=(40, 48))
    assert [facts.dims for facts in Model(spec, "cpu").outputs] == [(3, None, None)]


def test_facts_that_are_damaged_are_named(tmp_path: Path) -> None:
    facts = json.loads(facts_to_json(toy_spec()))
    facts["preprocessing"]["mean"] = "grey"
    save_exported(tmp_path / "toy.pt2", json.dumps(facts))
    assert "preprocessing.mean" in error_of(tmp_path / "toy.pt2")
