"""Model files made to do harm: they are refused before anything in them runs, and quickly."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model_inference import Model
from pipelines.models.outputs import LogitOutput
from pipelines.zoo.files.facts import facts_to_json
from tests.zoo.test_saved_models import (
    PIXELS,
    SIDE_PX,
    Toy,
    error_of,
    rewritten,
    save_exported,
    save_script,
    spec_of,
    toy_spec,
)

Members = list[tuple[str, bytes]]
GUARD = "__import__('pathlib').Path({!r}).touch() == None"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "toy.pt2"
    save_exported(path, facts_to_json(toy_spec()))
    return path


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "toy.ts"
    save_script(path, facts_to_json(toy_spec()))
    return path


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def written(path: Path, members: Members, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            # What is of one name twice is what some of these tests are about.
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            with archive.open(info, "w") as file:
                file.write(data)
    return path


def guarded(graph: bytes, guard: str) -> bytes:
    """A graph with a guard, which torch evaluates as Python."""
    return json.dumps({**json.loads(graph), "guards_code": [guard]}).encode()


def twice(members: Members, mark: Path, name_of: Callable[[str], str]) -> dict[str, Members]:
    """A good graph and one with code under another form of its name; one first, then the other."""
    place = next(place for place, (name, _) in enumerate(members) if "/models/" in name)
    name, graph = members[place]
    pair = [(name, graph), (name_of(name), guarded(graph, GUARD.format(str(mark))))]
    return {
        order: [*members[:place], *both, *members[place + 1 :]]
        for order, both in {"good first": pair, "evil first": pair[::-1]}.items()
    }


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "name_of",
    [
        lambda name: name,
        lambda name: name.replace("/models/", "/MODELS/"),
        lambda name: name.replace("model.json", "Model.json"),
        lambda name: f"other{name}",
        lambda name: name.replace("/models/", "/./models/"),
        lambda name: name.replace("/", "\\"),
        lambda name: name.replace("/models/", "/models/sub/"),
        lambda name: name.replace("model.json", "model2.json"),
    ],
    ids=["equal", "folder's case", "case", "root", "dots", "backslash", "folder", "name"],
)
def test_a_second_graph_is_refused(tmp_path: Path, exported: Path, name_of: Callable[[str], str]) -> None:
    for members in twice(members_of(exported), tmp_path / "mark", name_of).values():
        text = error_of(written(tmp_path / "evil.pt2", members))
        assert re.search("two members|more than one archive|no part of a saved model|of an old format", text)
    assert not (tmp_path / "mark").exists()


def test_one_of_these_would_run_code(tmp_path: Path, exported: Path) -> None:
    members = twice(members_of(exported), tmp_path / "mark", lambda name: name.replace("models", "MODELS"))
    evil = written(tmp_path / "evil.pt2", members["good first"])
    Model(spec_of(evil, allow_code=True), "cpu")
    assert (tmp_path / "mark").exists(), "or these tests show nothing"


def test_archives_one_after_the_other_are_refused(tmp_path: Path, exported: Path, script: Path) -> None:
    for good in (exported, script):
        evil = tmp_path / f"evil{good.suffix}"
        for before, after in ((good.read_bytes(), b""), (b"", b"junk"), (b"PK", b"")):
            evil.write_bytes(before + good.read_bytes() + after)
            assert "more than one archive" in error_of(evil) or "cannot read" in error_of(evil)


@pytest.mark.parametrize(
    ("place", "form", "step"), [(-8, "<I", 1), (-12, "<H", 1), (-50, "<Q", 1), (-34, "<Q", -8)]
)
def test_an_end_that_points_elsewhere_is_refused(
    tmp_path: Path, exported: Path, place: int, form: str, step: int
) -> None:
    """Where the list of members lies: in the last record, in the one of 64 bits, and where that one lies."""
    data = bytearray(exported.read_bytes())
    (value,) = struct.unpack_from(form, data, len(data) + place)
    struct.pack_into(form, data, len(data) + place, value + step)
    (tmp_path / "evil.pt2").write_bytes(data)
    assert re.search("more than one archive|cannot read", error_of(tmp_path / "evil.pt2"))


def test_the_old_format_of_exported_programs_is_refused(tmp_path: Path, exported: Path) -> None:
    graph = next(data for name, data in members_of(exported) if "/models/" in name)
    old = [
        ("version", b"8.14"),
        ("serialized_exported_program.json", guarded(graph, GUARD.format(str(tmp_path / "mark")))),
        *((f"serialized_{name}.pt", b"") for name in ("state_dict", "constants", "example_inputs")),
    ]
    for members in (old, [*old, ("x/models/model.json", graph)], [*members_of(exported), *old]):
        assert "is of an old format" in error_of(written(tmp_path / "evil.pt2", members))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "member",
    [
        "model.json",
        "code/__torch__.PY",
        "code/$.py",
        "Code/__torch__/a.py",
        "CODE/__torch__.py",
        "x.so",
    ],
)
def test_a_member_that_torchscript_has_not_is_refused(tmp_path: Path, script: Path, member: str) -> None:
    evil = rewritten(script, lambda _name, data: data, {member: b"def f(): pass"})
    assert re.search("no part of a saved model|two members", error_of(evil))


@pytest.mark.parametrize(
    "line",
    [
        'ops.image.write_file("mark", torch.to(x, 0))',
        'ops.image.read_file("/etc/passwd")',
        'torch.save(x, "mark")',
        'ops.aten.save(x, "mark")',
        'ops . aten . save(x, "mark")',
        'ops.\\\n    aten.save(x, "mark")',
        '(ops).image.write_file("mark", x)',
        'o = ops\n    o.image.write_file("mark", x)',
        'o = ops.image\n    o.write_file("mark", x)',
        "o = ops.aten\n    o.cos(x)",
        't = torch\n    t.save(x, "mark")',
        "t = torch.autograd\n    t.cos(x)",
        'getattr(ops, "aten").cos(x)',
        'getattr(ops.aten, "s\\141ve")(x, "mark")',
        'getattr(torch, "s\\141ve")(x, "mark")',
        'getattr(torch.autograd, "s\\141ve")(x, "mark")',
        'torch.autograd.save(x, "mark")',
        'torch.from_file("mark")',
        'ops.prim.rpc_sync("mark")',
        "ops.symm_mem.stream_write_value32_(x)",
        '"""" ops.image.read_file("a")"""',
        "'\"' + ops.image.read_file('\"')",
        '# "\n    ops.image.read_file("a")',
        '__torch__.torch.classes.c10d.Store.open("a")',
    ],
)
def test_torchscript_that_reaches_beyond_a_computation_is_refused(
    tmp_path: Path, script: Path, line: str
) -> None:
    def change(name: str, data: bytes) -> bytes:
        return data.replace(b"  return", f"  {line}\n  return".encode(), 1) if name.endswith(".py") else data

    assert re.search("its code|no tensor", error_of(rewritten(script, change)))


def test_code_under_two_cases_of_a_name_is_refused(tmp_path: Path, script: Path) -> None:
    name, code = next((name, data) for name, data in members_of(script) if name.endswith(".py"))
    other = name.partition("/")[2].replace("__torch__", "__Torch__")
    assert "two members" in error_of(rewritten(script, lambda _name, data: data, {other: code}))


def test_an_object_of_a_class_of_c_plus_plus_is_refused(tmp_path: Path, script: Path) -> None:
    for reference in (b"c__torch__.torch.classes.x\nY\n", b"c__torch__.torch\nclasses.x.Y\n"):
        change = lambda name, data, more=reference: more + data if name.endswith("data.pkl") else data  # noqa: E731
        assert "an object that is no tensor" in error_of(rewritten(script, change))


class Told(nn.Module):
    """Speaks of operators in a message, has a member of their name, and children with numbers for names."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = nn.Sequential(Toy(), nn.ReLU())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.dim() != 4:
            raise ValueError("Couldn't use ops. Is \"torch\" 'new'? # save it\n")
        logits: torch.Tensor = self.ops(pixels)
        return logits


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_that_only_speaks_of_operators_passes(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Told()), tmp_path / "toy.ts")
    spec = spec_of(tmp_path / "toy.ts", task="classification", resize_px=(SIDE_PX, SIDE_PX))
    assert Model(spec, "cpu").spec.labels == ("0", "1", "2")


def test_members_that_are_compressed_are_refused(tmp_path: Path, exported: Path, script: Path) -> None:
    bomb = b'["' + b"a" * (80 << 20) + b'"]'
    graph = [(name, bomb if "/models/" in name else data) for name, data in members_of(exported)]
    code = [(name, bomb if name.endswith(".py") else data) for name, data in members_of(script)]
    for place, members in (("evil.pt2", graph), ("evil.ts", members_of(script))):
        text = error_of(written(tmp_path / place, members, zipfile.ZIP_DEFLATED))
        assert "is compressed, as torch does not do it" in text
    plain = [(name, data) for name, data in code if not name.endswith(".py")]
    written(tmp_path / "evil.ts", plain)
    with zipfile.ZipFile(tmp_path / "evil.ts", "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in code:
            if name.endswith(".py"):
                archive.writestr(name, data)
    assert (tmp_path / "evil.ts").stat().st_size < 1 << 20
    assert "is small and holds" in error_of(tmp_path / "evil.ts")
    assert "more than 67108864" in error_of(written(tmp_path / "evil.pt2", graph))


def test_a_state_dict_that_is_compressed_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "plain.pth")
    evil = written(tmp_path / "evil.pth", members_of(tmp_path / "plain.pth"), zipfile.ZIP_DEFLATED)
    assert "is compressed, as torch does not do it" in error_of(evil, arch="squeezenet1_1")


def test_graphs_that_are_nested_deep_or_guarded_by_code_are_refused(tmp_path: Path, exported: Path) -> None:
    deep = [b"[" * depth + b"]" * depth for depth in (300, 900, 100_000)]
    graph = next(data for name, data in members_of(exported) if "/models/" in name)
    for evil in (*deep, b"\xef\xbb\xbf" + graph, graph.decode().encode("utf-16")):
        change = lambda name, data, evil=evil: evil if "/models/" in name else data  # noqa: E731
        assert "cannot read" in error_of(rewritten(exported, change))
    for guard in ("9**9**9**9", "-" * 900 + "1", "__import__('os')"):
        evil = guarded(graph, guard)
        change = lambda name, data, evil=evil: evil if "/models/" in name else data  # noqa: E731
        assert "is no expression of sizes" in error_of(rewritten(exported, change))


def test_a_program_of_one_picture_is_served_one_by_one(tmp_path: Path) -> None:
    program = torch.export.export(Toy(), (PIXELS[:1],))
    for facts in ({}, {"trivid": facts_to_json(toy_spec())}):
        torch.export.save(program, tmp_path / "one.pt2", extra_files=dict(facts))
        spec = spec_of(tmp_path / "one.pt2", task="classification")
        assert (spec.max_batch, spec.preprocessing.resize_px) == (1, (SIDE_PX, SIDE_PX))
        answer = Model(spec, "cpu")(PIXELS[:1])
        assert isinstance(answer, LogitOutput)
        torch.testing.assert_close(answer.logits, Toy()(PIXELS[:1]), rtol=1e-4, atol=1e-5)


def test_a_damaged_archive_is_an_error_of_one_line(tmp_path: Path, exported: Path, script: Path) -> None:
    for good in (exported, script):
        data = good.read_bytes()
        evil = tmp_path / f"evil{good.suffix}"
        for changed in (b"", data[: len(data) // 2], data.replace(b"PK\x03\x04", b"PK\x03\x05", 3)):
            evil.write_bytes(changed)
            assert str(evil) in error_of(evil)
    assert io.BytesIO(data).read(2) == b"PK"
