"""timm's networks, by name or from a folder of its own form. Knows no options.

timm says how pixels are prepared and what the classes are called. Weights are its own, from the Hugging Face
Hub; a file of one's own; those of a folder (`config.json` and weights, as `timm.models.save_for_hf` writes
it); or noise. All but timm's own are read here, without running code.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from pipelines.models.onnx_runtime import one_line
from pipelines.models.spec import Interpolation, Preprocessing, TaskName
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.draft import Draft
from pipelines.zoo.files.fitting import load_state
from pipelines.zoo.files.state import read_state
from pipelines.zoo.libraries.shared import checked_labels, library
from pipelines.zoo.texts import check_file
from pipelines.zoo.vision.random_weights import LOGIT_SPREAD, norm_statistics, spread_logits

RANDOM = "random"
# The weights in a folder, in timm's own order of preference.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
MAX_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    """What timm knows of a network.

    Attributes:
        name: of its registry, with the tag of the weights.
        config: its `pretrained_cfg`.
        options: of its constructor.
        folder, file: where it is saved, and its weights there.
    """

    name: str
    config: Mapping[str, Any]
    options: Mapping[str, Any]
    folder: Path | None = None
    file: Path | None = None

    @property
    def classes(self) -> int:
        return int(self.config.get("num_classes") or 0)

    @property
    def last_layers(self) -> tuple[str, ...]:
        named = self.config.get("classifier") or ()
        return (named,) if isinstance(named, str) else tuple(named)

    def built(self, classes: int, *, pretrained: bool = False, **overlay: object) -> nn.Module:
        """With so many classes, 0: without the last layer. `overlay` changes where timm's own weights are."""
        made = library("timm").create_model(
            self.name,
            pretrained=pretrained,
            num_classes=classes,
            pretrained_cfg_overlay=overlay or None,
            **self.options,
        )
        assert isinstance(made, nn.Module)
        return made


def timm_draft(text: str, *, weights: str = "", sha256: str = "", task: TaskName | None = None) -> Draft:
    """What timm says of a network.

    Args:
        text: a name of timm's, with the tag of its weights or without; or a folder of a saved network.
        weights: empty for its own, which are downloaded on first use; a state dict; or `random`.
        sha256: of the file of weights.
        task: as chosen; an embedding is what comes before the last layer.

    Raises:
        ModelUnavailable: timm is not installed, or has no such network or weights; or their pixels cannot be
            prepared as it says.
    """
    network = _from_folder(Path(text).expanduser()) if _is_folder(text) else _by_name(text)
    file = Path(weights).expanduser() if weights not in ("", RANDOM, "DEFAULT") else network.file
    if weights == RANDOM:
        _refuse_pin(sha256)
        return _draft(
            network,
            network.classes,
            task,
            _random(network),
            "RANDOM WEIGHTS (noise, for tests and benchmarks only)",
        )
    if file is None:
        if network.folder is not None:
            # Its JSON may name a repository, from which nothing is downloaded that nobody asked for.
            hint = f"put one of {', '.join(FOLDER_FILES)} there, or give a weights file (--weights FILE)"
            raise ModelUnavailable(f"no weights in {network.folder}", hint=hint)
        if not any(network.config.get(key) for key in ("url", "hf_hub_id")):
            hint = "give a weights file (--weights FILE)"
            raise ModelUnavailable(f"timm has no weights of {network.name}", hint=hint)
        return _draft(network, network.classes, task, _downloaded(network, sha256), "timm's own weights")
    classes = _classes_of(network, read_state(file, sha256))

    def build(count: int) -> nn.Module:
        made = network.built(count)
        _load(made, network, read_state(file, sha256), file)
        return made

    draft = _draft(network, classes, task, build, f"{file.name}, weights for timm's {network.name}")
    return draft if file == network.file else replace(draft, licence="", assumed=_assumed(network, draft))


def _is_folder(text: str) -> bool:
    return ":" not in text and ("/" in text or text.startswith(".") or (bool(text) and Path(text).is_dir()))


def _by_name(text: str) -> _Network:
    timm = library("timm")
    if ":" in text or not timm.is_model(text):
        close = difflib.get_close_matches(text.partition(".")[0], timm.list_models(), n=5, cutoff=0.4)
        hint = "a name of timm.list_models(), or timm:./FOLDER of a saved network (hf download OWNER/NAME "
        hint += "--local-dir FOLDER)"
        raise ModelUnavailable(
            f"timm has no model {text!r}", hint=f"closest: {', '.join(close)}; {hint}" if close else hint
        )
    try:
        config = timm.get_pretrained_cfg(text)
    except RuntimeError as error:
        name = text.partition(".")[0]
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
        hint = f"one of: {', '.join(f'{name}.{tag}' for tag in tags)}"
        raise ModelUnavailable(f"timm has no weights {text!r}", hint=hint) from error
    said = config.to_dict() if config else {}
    name = f"{text}.{said['tag']}" if "." not in text and said.get("tag") else text
    return _Network(name=name, config=said, options={})


def _from_folder(folder: Path) -> _Network:
    file = next((folder / name for name in FOLDER_FILES if (folder / name).is_file()), None)
    if not (folder / "config.json").is_file():
        hint = "a name of timm.list_models(), or a folder with the config.json that timm wrote"
        raise ModelUnavailable(f"no config.json in {folder}", hint=hint)
    try:
        config, name, options = library("timm.models._hub").load_model_config_from_path(folder)
        config, options = dict(config), dict(options or {})
        known = library("timm").is_model(name)
    except Exception as error:
        # A border: timm reads the file without checking it.
        raise ModelUnavailable(
            f"{folder / 'config.json'} is not timm's: {type(error).__name__}: {one_line(error)}",
            hint="hf:FOLDER serves a folder of transformers",
        ) from error
    if not known:
        raise ModelUnavailable(
            f"timm has no model {name!r}, which {folder / 'config.json'} names",
            hint="a newer version of timm may have it (uv sync --extra timm)",
        )
    options.pop("num_classes", None)
    default = library("timm").get_pretrained_cfg(name)
    config.setdefault("classifier", default.classifier if default else None)
    return _Network(name=name, config={**config, "file": None}, options=options, folder=folder, file=file)


def _refuse_pin(sha256: str) -> None:
    if sha256:
        raise ModelUnavailable("random weights are not a file that sha256 can pin", hint="leave out sha256")


def _draft(
    network: _Network,
    classes: int,
    task: TaskName | None,
    build: Callable[[int], nn.Module],
    source: str,
) -> Draft:
    own = classes == network.classes
    labels = _labels(network, classes)
    # Image towers of CLIP and its kin have features where others have classes.
    named = bool(labels) or not own
    if task == "embedding" and named:
        classes, labels = 0, ()
    return Draft(
        name=network.name,
        build=lambda: _served(build, classes, network.name),
        source=source,
        task="embedding" if classes == 0 else "classification" if named else None,
        labels=labels,
        classes=classes,
        preprocessing=_preprocessing(network),
        max_batch=MAX_BATCH,
        thread_safe=True,
        licence=str(network.config.get("license") or "") if own else "",
    )


def _served(build: Callable[[int], nn.Module], classes: int, name: str) -> nn.Module:
    try:
        return build(classes)
    except (TypeError, ValueError, AssertionError, LookupError, AttributeError, RuntimeError) as error:
        raise ModelUnavailable(
            f"timm cannot build {name}: {one_line(error)}", hint="try it with timm.create_model"
        ) from error


def _assumed(network: _Network, draft: Draft) -> tuple[str, ...]:
    """What a file of weights alone does not say."""
    pixels = f"pixels are prepared as for timm's own weights of {network.name}"
    return (pixels, "its classes are those of these weights") if draft.labels else (pixels,)


def _labels(network: _Network, classes: int) -> tuple[str, ...]:
    """The names that come with the weights, or ImageNet's where their number is that of one of its parts."""
    if classes != network.classes:
        return ()
    config = network.config
    if own := config.get("label_names"):
        texts = config.get("label_descriptions") or {}
        texts = texts if isinstance(texts, Mapping) else {}
        return checked_labels([texts.get(one, one) for one in own], classes, network.name)
    data = library("timm.data")
    subset = data.infer_imagenet_subset({"num_classes": classes})
    return tuple(data.ImageNetInfo(subset).label_descriptions()) if subset else ()


def _preprocessing(network: _Network) -> Preprocessing:
    """The facts of `resolve_data_config`, as timm's `transforms_imagenet_eval` means them."""
    name = network.name
    try:
        said = library("timm.data").resolve_data_config(pretrained_cfg=dict(network.config))
        channels, height_px, width_px = map(int, said["input_size"])
        crop_pct, mode = float(said["crop_pct"]), said["crop_mode"]
        mean, std = tuple(map(float, said["mean"])), tuple(map(float, said["std"]))
        if channels != 3 or len(mean) != 3 or len(std) != 3:
            raise _refused(name, f"{channels} channels")
        if said["interpolation"] not in get_args(Interpolation):
            raise _refused(name, f"interpolation {said['interpolation']!r}")
        if mode not in ("center", "squash"):
            raise _refused(name, f"crop_mode {mode!r}")
        resized_hw = math.floor(height_px / crop_pct), math.floor(width_px / crop_pct)
        if mode == "center" and resized_hw[0] != resized_hw[1]:
            raise _refused(name, f"an input of {height_px}x{width_px} px that keeps the aspect")
        return Preprocessing(
            resize_px=resized_hw if mode == "squash" else resized_hw[0],
            crop_px=(height_px, width_px),
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
            interpolation=said["interpolation"],
        )
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise ModelUnavailable(
            f"{name}: timm's configuration of its pixels is wrong: {one_line(error)}",
            hint="check input_size, crop_pct, mean and std in config.json",
        ) from error


def _refused(name: str, what: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{name} needs {what}, which is not supported",
        hint="other weights of it may work: timm.list_pretrained() lists them",
    )


def _classes_of(network: _Network, state: Mapping[str, Tensor]) -> int:
    """How many classes a file of weights has; 0: it has no last layer."""
    if not network.last_layers:
        return network.classes
    found = _last_length(network, state)
    if found is None and network.classes:
        found = _last_length(network, _renamed(network.built(network.classes), state))
    return found or 0


def _last_length(network: _Network, state: Mapping[str, Tensor]) -> int | None:
    ends = tuple(f"{layer}.{kind}" for layer in network.last_layers for kind in ("weight", "bias"))
    found = [name for name in state if name.endswith(ends)]
    return len(state[min(found, key=len)]) if found else None


def _renamed(made: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights by timm's names, where they have those of a network's first authors."""
    rename = getattr(sys.modules[type(made).__module__], "checkpoint_filter_fn", None)
    if rename is None or made.state_dict().keys() <= state.keys():
        return state
    try:
        renamed: dict[str, Tensor] = rename(dict(state), made)
    except Exception:  # noqa: BLE001 - a border: timm's own code, for files of a certain form
        return state
    return renamed


def _load(made: nn.Module, network: _Network, state: Mapping[str, Tensor], file: Path) -> None:
    state, own = _renamed(made, state), made.state_dict()
    last = tuple(f"{layer}." for layer in network.last_layers)
    kept = {name: one for name, one in state.items() if name in own or not name.startswith(last)}
    load_state(made, kept, file)


def _downloaded(network: _Network, sha256: str) -> Callable[[int], nn.Module]:
    place = network.config.get("hf_hub_id")
    if sha256 and not place:
        raise ModelUnavailable(
            f"the weights of {network.name} are not on the Hugging Face Hub, so sha256 cannot pin them",
            hint="download them and give --weights FILE",
        )

    def build(classes: int) -> nn.Module:
        try:
            if not place:
                return network.built(classes, pretrained=True)
            file = _hub_file(place)
            check_file(file, sha256)
            if file.suffix == ".safetensors":
                return network.built(classes, pretrained=True, file=str(file), custom_load=False)
            made = network.built(classes, pretrained=True, state_dict=read_state(file), custom_load=False)
            # It keeps what it was built from, and would hold the weights twice.
            getattr(made, "pretrained_cfg", {}).pop("state_dict", None)
            return made
        except ModelUnavailable:
            raise
        except Exception as error:
            # A border: the hub's client has exceptions of several libraries.
            raise ModelUnavailable(
                f"cannot get the weights of {network.name} from the Hugging Face Hub: {one_line(error)}",
                hint="give a weights file (--weights FILE), or where there is a network hf download "
                f"{place or 'OWNER/NAME'} --local-dir FOLDER, and serve timm:./FOLDER",
            ) from error

    return build


def _hub_file(place: str) -> Path:
    """A network's weights in the hub's cache, where they are downloaded to if they are not there."""
    hub, errors = library("huggingface_hub"), library("huggingface_hub.errors")
    try:
        return Path(hub.hf_hub_download(place, "model.safetensors"))
    except errors.RemoteEntryNotFoundError:
        return Path(hub.hf_hub_download(place, "pytorch_model.bin"))


def _random(network: _Network) -> Callable[[int], nn.Module]:
    def build(classes: int) -> nn.Module:
        # Seeded, and the process's own random numbers go on as if nothing had been.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = network.built(classes).eval()
            size_hw = _preprocessing(network).fixed_hw
            pictures = nn.functional.interpolate(torch.randn(2, 3, 8, 8), size=size_hw)
        with torch.inference_mode():
            with norm_statistics(made):
                made(pictures)
            if classes:
                spread_logits(made, made(pictures), LOGIT_SPREAD)
        return made

    return build
