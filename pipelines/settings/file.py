"""The settings file: TOML with a `[server]` table and a `[[model]]` table for each model.

Every key is checked against what there is, every value against its type: a typing error must not go unseen.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Strict

from pipelines.settings.model import ModelSettings, ModelTable
from pipelines.settings.reading import STRICT, WrongInput, read, read_text
from pipelines.settings.server import ServerSettings

EPILOG = """settings file (--settings FILE, TOML; paths in it are relative to it):
  [server]                              every server flag above, with _ for -, without the leading --
  device = "cpu"
  http_port = 8000

  [[model]]                             one table per model; flags override it, a --model all of them
  source = "resnet50"                   as of --model; and task, weights, labels, model_proc, arch, sha256,
                                        precision, engine, head, output, activation, multi_label,
                                        iou_threshold, normalise, transform_input, norm_eps as their flags;
                                        max_batch, score_threshold, clip_length, clip_fps
  name = "gate"                         under which it is served; without it, its task
  [model.preprocessing]                 overrides of what the model itself declares:
  resize_px = 256                       the shorter side, or [height, width]; 0: no resize
  crop_px = 224                         one number or [height, width]
  mean = [0.485, 0.456, 0.406]          and std, of values in 0..1
  interpolation = "bilinear"            or nearest, bicubic; and antialias = true, channels = "RGB" or "BGR",
                                        fit = "stretch" or "letterbox", pad_value, max_px, tile_px,
                                        tile_overlap_px
"""


class _File(BaseModel):
    model_config = STRICT

    server: ServerSettings = ServerSettings()
    # TOML has lists only.
    model: Annotated[tuple[ModelTable, ...], Strict(False)] = ()


def read_settings_file(path: Path) -> tuple[dict[str, Any], tuple[ModelSettings, ...]]:
    """What a settings file says of the server, by name, and of the models.

    Raises:
        WrongInput: it cannot be read, or a key is unknown, or a value is none that its key takes.
    """
    text = read_text(path, "settings")
    try:
        whole = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise WrongInput(f"the settings file {path} is not TOML: {error}") from error
    if isinstance(whole.get("model"), dict):
        raise WrongInput(f"{path}: model is one table, not a list of them", hint="write [[model]]")
    found = read(_File, whole, str(path), missing='e.g. source = "resnet50"')
    models = tuple(
        model.settings(path.parent, f"{path}: model[{at}]") for at, model in enumerate(found.model)
    )
    return found.server.model_dump(exclude_unset=True), models
