"""The house: imports point downwards, importing does nothing, the client is light, files stay readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# From the ground up: a room imports from floors below its own only. A module beside the rooms is a room too.
FLOORS = (
    ("protocol", "telemetry"),
    ("sdk", "machine"),
    ("models",),
    ("settings", "frames", "model_inference"),
    ("media", "rendering", "batching", "zoo", "loading"),
    ("tasks",),
    ("second_stage",),
    ("pipeline",),
    ("assembly",),
    ("serving",),
    ("client", "server"),
)
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
# In which rooms or modules a foreign library may be imported.
HOME_OF = {
    "nvidia": ("pipelines.frames", "pipelines.rendering", "pipelines.media.nvdec"),
    "pytriton": ("pipelines.serving",),
    "av": ("pipelines.media", "pipelines.rendering.encode"),
    "PIL": (
        *("pipelines.media.images", "pipelines.media.animations", "pipelines.media.damage.pictures"),
        *("pipelines.media.bounds", "pipelines.rendering"),
    ),
    "torchvision": (
        *("pipelines.zoo.vision", "pipelines.zoo.demo", "pipelines.loading.agreement"),
        "pipelines.models.heads",
        *("pipelines.tasks.boxes", "pipelines.tasks.masks"),
    ),
    "pydantic": ("pipelines.settings", "pipelines.zoo"),
    "psutil": ("pipelines.machine", "pipelines.serving.door"),
    "onnxruntime": ("pipelines.models.onnx_runtime",),
    "timm": ("pipelines.zoo.libraries",),
    "transformers": ("pipelines.zoo.libraries",),
    "openvino": ("pipelines.models.openvino_runtime",),
    "tritonclient": ("pipelines.sdk.grpc_transport", "pipelines.serving.triton"),
    "grpc": ("pipelines.sdk.grpc_transport",),
}
MOST_MODULES = 13
MOST_LINES = 400


def modules() -> dict[str, Path]:
    """All modules of the runtime, by dotted name."""
    files = [ROOT / f"{name}.py" for name in ("server", "client", "model_inference")]
    files += (ROOT / "pipelines").rglob("*.py")
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its head or within a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {member for member in members if member in MODULES} or {node.module}
    return found


MODULES = modules()
PACKAGES = sorted({path.parent for name, path in MODULES.items() if name.startswith("pipelines.")})


def room_of(module: str) -> str:
    """`pipelines.media.images` is in `media`."""
    return module.removeprefix("pipelines.").split(".")[0]


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"pipelines"}))
def test_imports_point_downwards(name: str) -> None:
    room = room_of(name)
    assert room in FLOOR_OF, f"{room} has no place in the house: give it one in FLOORS"
    others = {room_of(used) for used in imports(MODULES[name]) if used in MODULES} - {room}
    assert {other for other in others if FLOOR_OF[other] >= FLOOR_OF[room]} == set()


def test_no_circle_within_a_room() -> None:
    graph = {
        name: {used for used in imports(path) if used in MODULES and used != name}
        for name, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_each_library_has_its_home(name: str) -> None:
    used = {imported.split(".")[0] for imported in imports(MODULES[name])} & set(HOME_OF)
    assert {
        library
        for library in used
        if not f"{name}.".startswith(tuple(f"{home}." for home in HOME_OF[library]))
    } == set()


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_rooms_stay_small(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_MODULES, (
        "split it"
    )


PROBE = """
import sys
def forbid(event, args):
    if event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.putenv"):
        raise RuntimeError(f"{event} at import: {args}")
    writes = event == "open" and isinstance(args[1], str) and set("wa") & set(args[1])
    if writes and "__pycache__" not in str(args[0]):
        raise RuntimeError(f"writes at import: {args}")
"""
LIBRARIES = (
    "numpy torch torch.utils.dlpack av PIL.Image nvidia.dali nvidia.dali.fn nvidia.dali.pipeline "
    "safetensors grpc pytriton.triton tritonclient.grpc"
)


def test_importing_touches_no_device_file_or_network() -> None:
    """Libraries are imported first, since they may do as they like; then all of ours, watched by an audit
    hook.
    """
    lines = [
        *(f"import {library}" for library in LIBRARIES.split()),
        PROBE,
        "sys.addaudithook(forbid)",
        *(f"import {module}" for module in sorted(MODULES)),
        "assert not torch.cuda.is_initialized()",
    ]
    command = [sys.executable, "-B", "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_the_client_is_light() -> None:
    heavy = ("torch", "nvidia.dali", "av", "PIL", "pydantic", "psutil")
    code = f"import client, sys; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_stay_readable(name: str) -> None:
    text = MODULES[name].read_text()
    assert text.count("\n") <= MOST_LINES, "split it"
    assert text.startswith('"""'), "says what it owns"
