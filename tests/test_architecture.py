"""The house: imports point downwards, importing does nothing, the client is light, files stay readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOUNS = {"contract", "errors", "results", "frames", "rle", "wire"}
CLIENT_SIDE = {
    "client",
    "pulls",
    "remote",
    "dump",
    "screen",
    "summary",
    "transport",
    "transport_grpc",
    "transport_http",
}
# From the ground up: a module imports only what stands before it.
HOUSE = (
    ("errors", "contract", "frames", "rle", "results", "wire"),
    ("transport", "transport_http", "transport_grpc", "pulls", "remote", "dump", "summary", "screen"),
    (
        "sources.choice",
        "telemetry",
        "admission",
        "threads",
        "probe",
        "preflight",
        "watchdog",
        "settings_file",
        "settings",
        "messages",
        "stub_mends",
    ),
    (
        "enlarge",
        "outputs",
        "runners",
        "model_inference",
        "demo_networks",
        "sources.state",
        "sources.facts",
        "sources.model_proc",
    ),
    (
        "sources.expressions",
        "sources.archive",
        "sources.download",
        "sources.draft",
        "sources.noise",
        "sources.one_stage",
        "sources.detectors",
        "sources.segmenters",
    ),
    ("onnx_graph", "openvino_graph", "exported", "sources.torchvision_models"),
    ("sources.onnx_models", "sources.saved", "sources.code", "sources", "sources.demo"),
    (
        "geometry",
        "resize",
        "graph",
        "preprocess",
        "drawing",
        "postprocess",
        "encode",
        "annotate",
        "memory",
        "agreement",
        "loading",
        "work",
        "engine",
    ),
    ("medium", "selection", "images", "containers", "packets", "colours", "pixels"),
    ("pyav_decode", "nvdec", "decode"),
    ("tasks.job", "tasks.classes", "tasks.ranking", "tasks.mosaic"),
    ("tasks.boxes", "tasks.instances", "tasks.painter"),
    ("tasks.classification", "tasks.detection", "tasks.segmentation", "tasks.action", "tasks"),
    ("pipeline", "assembly", "sessions", "endpoints", "single_stages", "services", "triton"),
    ("client", "server"),
)
ORDER = {name: place for place, name in enumerate(name for floor in HOUSE for name in floor)}
HOME_OF = {
    "nvidia": {"nvdec", "graph", "preprocess", "drawing", "postprocess"},
    "pytriton": {"triton"},
    "av": {"pyav_decode", "containers", "packets", "colours", "pixels", "encode", "decode"},
    "PIL": {"images", "encode", "annotate"},
    "torchvision": {
        *("sources.torchvision_models", "sources.detectors", "sources.one_stage"),
        *("sources.noise", "sources.download"),
        *("demo_networks", "agreement", "tasks.boxes", "tasks.instances"),
    },
    "onnxruntime": {"onnx_graph"},
    "openvino": {"openvino_graph"},
    "tritonclient": {"transport_grpc", "triton"},
    "grpc": {"transport_grpc"},
}


def sources() -> dict[str, Path]:
    files = {
        path.stem: path for path in (ROOT / "server.py", ROOT / "client.py", ROOT / "model_inference.py")
    }
    for path in (ROOT / "pipelines").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / "pipelines").with_suffix("").parts).removesuffix(".__init__")
        files[name] = path
    files.pop("__init__", None)
    return files


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its head or within a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "pipelines":
            found |= {f"pipelines.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("name", sorted(sources()))
def test_imports_point_downwards(name: str) -> None:
    assert name in ORDER, f"{name} has no place in the house: give it one in HOUSE"
    own = {imported.removeprefix("pipelines.") for imported in imports(sources()[name])}
    upwards = {imported for imported in own if imported in ORDER and ORDER[imported] >= ORDER[name]}
    assert not upwards


@pytest.mark.parametrize("name", sorted(sources()))
def test_each_library_has_its_home(name: str) -> None:
    used = {imported.split(".")[0] for imported in imports(sources()[name])}
    strangers = {library for library, homes in HOME_OF.items() if library in used and name not in homes}
    assert not strangers


def test_the_client_imports_nouns_and_transport_alone() -> None:
    for name in CLIENT_SIDE:
        own = {
            one.removeprefix("pipelines.") for one in imports(sources()[name]) if one.startswith("pipelines.")
        }
        assert own <= NOUNS | CLIENT_SIDE, name


PROBE = """
import sys
def forbid(event, args):
    if event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.putenv"):
        raise RuntimeError(f"{event} at import: {args}")
    if event == "open" and isinstance(args[1], str) and set("wa") & set(args[1]) and "__pycache__" not in str(args[0]):
        raise RuntimeError(f"writes at import: {args}")
"""
LIBRARIES = "numpy torch torch.utils.dlpack av PIL.Image nvidia.dali nvidia.dali.fn nvidia.dali.pipeline safetensors grpc pytriton.triton"


def test_importing_touches_no_device_file_or_network() -> None:
    """Libraries are imported first, since they may do as they like; then all of ours, watched by an audit hook."""
    modules = [
        name if path.parent == ROOT else f"pipelines.{name}" for name, path in sorted(sources().items())
    ]
    code = "\n".join(
        [
            *(f"import {library}" for library in [*LIBRARIES.split(), "tritonclient.grpc"]),
            PROBE,
            "sys.addaudithook(forbid)",
            *(f"import {module}" for module in modules),
            "assert not torch.cuda.is_initialized()",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_client_is_light() -> None:
    code = "import client, sys; print([m for m in ('torch', 'nvidia.dali', 'av', 'PIL') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").rglob("*.py")), ids=lambda path: path.name)
def test_files_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, "split it"
    assert text.startswith('"""'), "says what it owns"
