"""Networks of transformers from a folder as `save_pretrained` writes it. Knows no options.

The folder is enough: nothing is downloaded, and no code of it runs. Its JSON says what the classes are called
and how pixels are prepared. A tensor that the folder lacks would be drawn at random; here it is an error.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pipelines.models.heads.detr import Detr
from pipelines.models.onnx_runtime import one_line
from pipelines.models.spec import MAX_CLIP_FRAMES, Activation, Preprocessing, TaskName
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.reading import WrongInput, read, read_text
from pipelines.zoo.draft import Draft
from pipelines.zoo.libraries.hf_pixels import processor_pixels
from pipelines.zoo.libraries.shared import checked_labels, library
from pipelines.zoo.texts import MOST_NAMES, check_file

# The library's tables of classes, by task.
TABLES: dict[TaskName, str] = {
    "classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "detection": "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "action": "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES",
}
# Detectors by their model_type. Some have a softmax over classes for a query, of which the last is no object.
# The others have a sigmoid for each class, and answer so many pairs of query and class (0: one per query).
SOFTMAX = frozenset({"detr", "table-transformer", "yolos"})
SIGMOID = {
    **dict.fromkeys(("conditional_detr", "dab-detr", "deformable_detr", "lw_detr"), 100),
    **dict.fromkeys(("d_fine", "deimv2", "rf_detr", "rt_detr", "rt_detr_v2"), 0),
}
# Weights, best first; those in parts have an index.
SAFE_FILES = ("model.safetensors", "model.safetensors.index.json")
FILES = (*SAFE_FILES, "pytorch_model.bin", "pytorch_model.bin.index.json")
MAX_BATCH: dict[TaskName, int] = {"classification": 16, "segmentation": 8, "detection": 4, "action": 4}
OTHER_HINT = "export it to ONNX, or write a function that returns a ModelSpec (package.module:function)"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    """A folder, what it holds, and the library's class of it."""

    folder: Path
    weights: Path
    config: Any
    task: TaskName
    architecture: str

    @property
    def source(self) -> str:
        return f"hf:{self.folder}"


def hf_draft(folder: Path, *, sha256: str = "") -> Draft:
    """What a folder says of its network.

    Args:
        sha256: of the file of weights.

    Raises:
        ModelUnavailable: transformers is not installed; the folder is not of its form, or another than
            pinned; its network is of another task, or its pixels cannot be prepared as it says.
    """
    saved = _opened(folder, sha256)
    labels = _labels(saved)
    activation, multi_label = _activation(saved, len(labels))
    return Draft(
        name=folder.resolve().name,
        build=lambda: _network(saved, sha256),
        source=f"{saved.weights.name} of {folder.name}, {saved.architecture} of transformers",
        task=saved.task,
        labels=labels,
        classes=len(labels),
        preprocessing=_preprocessing(saved),
        head=_head(saved, len(labels)) if saved.task == "detection" else None,
        max_batch=MAX_BATCH[saved.task],
        clip_length=_frames(saved),
        # The library keeps what it gathers in a pass apart for each thread.
        thread_safe=True,
        output="" if saved.task == "detection" else "logits",
        activation=activation,
        multi_label=multi_label,
        licence=_licence(folder),
    )


def _opened(folder: Path, sha256: str) -> _Saved:
    """The folder's facts, without its weights."""
    if not (folder / "config.json").is_file():
        raise ModelUnavailable(
            f"no config.json in {folder}", hint="a folder as save_pretrained of transformers writes it"
        )
    weights = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if weights is None:
        hint = f"save it with save_pretrained; {SAFE_FILES[0]} is what it writes"
        raise ModelUnavailable(f"{folder} has no weights", hint=hint)
    if (folder / "adapter_config.json").is_file():
        hint = "join it with its network (merge_and_unload of peft) and save that"
        raise ModelUnavailable(f"{folder} holds an adapter, not a network", hint=hint)
    if sha256 and weights.suffix == ".json":
        hint = "leave out sha256, or save the network in one file (max_shard_size)"
        raise ModelUnavailable(f"{folder} has weights in several files, which sha256 cannot pin", hint=hint)
    check_file(weights, sha256)
    _refuse_code(folder)
    with _foreign(folder, "its config.json cannot be read"):
        config = library("transformers").AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    task, architecture = _task(folder, config)
    return _Saved(folder=folder, weights=weights, config=config, task=task, architecture=architecture)


class _Config(BaseModel):
    """What is looked at in `config.json` before the library reads it."""

    model_config = ConfigDict(extra="ignore")

    model_type: str = ""
    auto_map: Any = None
    num_labels: Annotated[int, Field(le=MOST_NAMES)] | None = None
    num_frames: Annotated[int, Field(ge=1, le=MAX_CLIP_FRAMES)] | None = None


def _refuse_code(folder: Path) -> None:
    """Raise ModelUnavailable if the network is none of the library's own."""
    path = folder / "config.json"
    hint = "a folder as save_pretrained of transformers writes it; timm:FOLDER serves one of timm"
    said = read(_Config, read_text(path, "config"), str(path), hint=hint)
    known = library("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    if said.model_type not in known:
        wrong = f"{path} has model_type {said.model_type!r}, which this version of transformers does not know"
        if said.auto_map:
            wrong += ", and the code that the folder brings (auto_map) is not run"
        raise ModelUnavailable(wrong, hint=OTHER_HINT if said.model_type else hint)


def _task(folder: Path, config: Any) -> tuple[TaskName, str]:
    """The task, and the name of the class, from the library's own tables."""
    auto = library("transformers.models.auto.modeling_auto")
    named = tuple(getattr(config, "architectures", None) or ())
    for task, table in TABLES.items():
        known = getattr(auto, table).get(config.model_type, ())
        for one in (known,) if isinstance(known, str) else known:
            if one in named:
                return task, one
    raise ModelUnavailable(
        f"{folder} holds a {', '.join(map(str, named)) or config.model_type} of transformers: only those for "
        "image classification, object detection, semantic segmentation and video classification are served",
        hint=OTHER_HINT,
    )


def _labels(saved: _Saved) -> tuple[str, ...]:
    """The names by number; a number that has no name is its own."""
    named: Mapping[int, str] = saved.config.id2label
    return checked_labels(
        [named.get(number, str(number)) for number in range(len(named))], len(named), saved.source
    )


def _activation(saved: _Saved, classes: int) -> tuple[Activation | None, bool]:
    """As the library's own pipelines have it; and whether several classes may be true at once."""
    kind = getattr(saved.config, "problem_type", None)
    if saved.task == "detection":
        return None, False
    if saved.task == "classification" and kind == "regression":
        return "none", False
    if saved.task == "classification" and (kind == "multi_label_classification" or classes == 1):
        return "sigmoid", classes > 1
    return "softmax", False


def _frames(saved: _Saved) -> int:
    """Of a clip; 0: the library does not say it."""
    return int(getattr(saved.config, "num_frames", 0) or 0) if saved.task == "action" else 0


def _licence(folder: Path) -> str:
    """What the model card says, if there is one; before its text stand fields between lines of dashes."""
    try:
        head, dashes, _ = read_text(folder / "README.md", "card").removeprefix("---").partition("\n---")
    except WrongInput:
        return ""
    found = re.search(r"^license:[ \t]*([\w.-]{1,100})[ \t]*$", head, re.MULTILINE) if dashes else None
    return found[1] if found else ""


def _head(saved: _Saved, classes: int) -> Detr:
    kind = saved.config.model_type
    if kind in SOFTMAX:
        return Detr(classes=classes, softmax=True)
    if kind not in SIGMOID or getattr(saved.config, "use_focal_loss", True) is False:
        wrong = f"a detector of a kind that is not served ({saved.architecture})"
        if kind in SIGMOID:
            wrong = f"a {saved.architecture} that was trained without focal loss, which is not served"
        raise ModelUnavailable(f"{saved.folder} holds {wrong}", hint=OTHER_HINT)
    return Detr(classes=classes, most=SIGMOID[kind])


def _preprocessing(saved: _Saved) -> Preprocessing:
    auto = library("transformers")
    clips = saved.task == "action"
    images = [saved.folder / name for name in ("preprocessor_config.json", "processor_config.json")]
    videos = saved.folder / "video_preprocessor_config.json"
    reader = auto.AutoImageProcessor
    if clips and videos.is_file() and not images[0].is_file():
        reader = auto.AutoVideoProcessor
    elif not any(path.is_file() for path in images):
        raise ModelUnavailable(
            f"{saved.folder} does not say how pixels are prepared: no preprocessor_config.json",
            hint="save the processor into it too, with its save_pretrained",
        )
    with _foreign(saved.folder, "its processor cannot be read"):
        processor = reader.from_pretrained(saved.folder, local_files_only=True, trust_remote_code=False)
    return processor_pixels(processor, clips=clips)


def _network(saved: _Saved, sha256: str) -> nn.Module:
    check_file(saved.weights, sha256)
    made = getattr(library("transformers"), saved.architecture)
    with _foreign(saved.folder, "its weights cannot be loaded"):
        network, found = made.from_pretrained(
            saved.folder,
            config=saved.config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=saved.weights.name in SAFE_FILES,
            weights_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    lacking = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
    if lacking:
        raise ModelUnavailable(
            f"{saved.folder} lacks {len(lacking)} tensors of its {saved.architecture}, e.g. "
            f"{', '.join(lacking[:3])}",
            hint="save the network that was trained for this task; others would be random numbers",
        )
    names = ("logits", "pred_boxes") if saved.task == "detection" else ("logits",)
    return Served(network, names, clips=saved.task == "action")


class Served(nn.Module):
    """A network of transformers that takes pixels and gives tensors by name.

    Args:
        names: of the outputs that are needed.
        clips: pixels are `(N, 3, T, h, w)`; the library has the frames first.
    """

    def __init__(self, network: nn.Module, names: tuple[str, ...], *, clips: bool) -> None:
        super().__init__()
        self.network = network
        self._names, self._clips = names, clips

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        given = self.network(pixel_values=pixels.transpose(1, 2) if self._clips else pixels)
        return {name: given[name] for name in self._names}


@contextlib.contextmanager
def _foreign(folder: Path, wrong: str) -> Iterator[None]:
    """Run code of the library silently; what it raises becomes a ModelUnavailable."""
    logs = library("transformers.utils.logging")
    verbosity, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    except ModelUnavailable:
        raise
    except Exception as error:
        # A border: the library reads files from elsewhere, and raises anything.
        raise ModelUnavailable(
            f"{folder}: {wrong}: {type(error).__name__}: {one_line(error)}",
            hint="try it with from_pretrained of transformers",
        ) from error
    finally:
        logs.set_verbosity(verbosity)
        if bars:
            logs.enable_progress_bar()
