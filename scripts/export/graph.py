"""Writes a network as one `.onnx` file, by the current exporter or the older one. Knows no preprocessing.

Two spellings that OpenCV 4.11 reads wrongly are replaced by others of the same meaning, see `spell_out`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipelines.models.export import INPUT, ONE_FILE_BYTES, quiet, write_traced
from pipelines.models.outputs import named_tensors
from pipelines.models.spec import TaskName

Exporter = Literal["torch.export", "TorchScript"]

BOX_NAMES = ("boxes", "scores", "labels")
# Of outputs.
NAMES: Mapping[str, tuple[str, ...]] = {"detection": BOX_NAMES, "segmentation": ("out",)}
EXPORT_BATCH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of exporting: by which exporter, and the names of dimensions that stay free, by their place."""

    exporter: Exporter
    free: Mapping[int, str]

    def __str__(self) -> str:
        return f"{self.exporter} with {'a free' if 0 in self.free else 'a fixed'} batch"

    def shape_of(self, pixels: Tensor) -> str:
        """What files take that were exported with such pixels."""
        return "×".join("N3hw"[at] if at in self.free else str(size) for at, size in enumerate(pixels.shape))


class Plain(nn.Module):
    """A network that gives only tensors: the first output of several, the boxes of one picture."""

    def __init__(self, network: nn.Module, task: TaskName) -> None:
        super().__init__()
        self.network, self.names = network, NAMES.get(task, ("logits",))
        # See `pipelines.models.export`: the mode of the outermost module counts.
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        given: Any = self.network(pixels)
        if self.names == BOX_NAMES:
            return tuple(given[0][name] for name in BOX_NAMES)
        return next(tensor for _, tensor in named_tensors(given))


class SpeltHardsigmoid(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return (values / 6 + 0.5).clamp(0, 1)


class SpeltMean3d(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.mean((3, 4), keepdim=True).mean(2, keepdim=True)


def spell_out(network: nn.Module) -> None:
    """Replace what OpenCV 4.11 reads wrongly by the same in simpler operators, in `network` itself.

    It takes every HardSigmoid that goes into a Mul for a HardSwish, whatever the other factor is (so the
    gates of MobileNetV3), and averages over three axes at once wrongly (so the ends of video networks).
    """
    for name, child in list(network.named_children()):
        if isinstance(child, nn.Hardsigmoid):
            setattr(network, name, SpeltHardsigmoid())
        elif isinstance(child, nn.AdaptiveAvgPool3d) and child.output_size in (1, (1, 1, 1)):
            setattr(network, name, SpeltMean3d())
        else:
            spell_out(child)


def write_graph(network: Plain, example: Tensor, path: Path, way: Way, opset: int | None) -> None:
    """Write `network` as `path`; the dimensions of `example`, one picture, stay fixed but for the free ones.

    Raises:
        FAILURES: the exporter cannot.
    """
    if 0 in way.free:
        example = example.repeat(EXPORT_BATCH, *[1] * (example.ndim - 1))
    if way.exporter == "TorchScript":
        outputs = {0: "detections"} if network.names == BOX_NAMES else way.free
        axes = {INPUT: way.free} | dict.fromkeys(network.names, outputs)
        write_traced(network, example, path, axes=axes, opset=opset)
        return
    dims = {place: torch.export.Dim(name) for place, name in way.free.items()}
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    with quiet(), torch.no_grad():
        torch.onnx.export(
            network,
            (example,),
            path,
            dynamo=True,
            input_names=[INPUT],
            output_names=network.names,
            opset_version=opset,
            dynamic_shapes=(dims,),
            # Beyond that, weights go into a second file.
            external_data=weights > ONE_FILE_BYTES,
            verbose=False,
        )


def describe(path: Path, facts: Mapping[str, str]) -> int:
    """Put `facts` into a file's metadata, take out what tells of this machine; return the opset."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for node in [*model.graph.node, *(node for function in model.functions for node in function.node)]:
        # Stack traces, with the paths of source files.
        del node.metadata_props[:]
        node.ClearField("doc_string")
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(facts))
    onnx.save(model, path)
    return next(int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx"))
