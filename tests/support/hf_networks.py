"""Tiny networks of transformers with random weights, saved as people save theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

NAMES = {0: "cat", 1: "dog", 2: "bird", 3: "N/A"}
LABELS: dict[str, Any] = {"id2label": NAMES, "label2id": {name: number for number, name in NAMES.items()}}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}
DECODER = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 20,
}
RT_DETR = {
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [8, 16, 16],
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "num_queries": 20,
    "decoder_in_channels": [16, 16, 16],
    "decoder_ffn_dim": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_n_points": 2,
    "num_denoising": 0,
}
SIZES = {"shortest_edge": 96, "longest_edge": 160}


def _resnet(hf: Any, kind: str, widths: list[int], features: tuple[str, ...]) -> Any:
    options = {"hidden_sizes": widths, "depths": [1, 1, 1, 1], "layer_type": "basic", "embedding_size": 8}
    return getattr(hf, kind)(**options, out_features=list(features))


def vit(hf: Any, **options: Any) -> tuple[nn.Module, Any]:
    network = hf.ViTForImageClassification(hf.ViTConfig(**VIT, **{**LABELS, **options}))
    return network, hf.ViTImageProcessor(size={"height": 32, "width": 32})


def resnet(hf: Any) -> tuple[nn.Module, Any]:
    config = _resnet(hf, "ResNetConfig", [8, 8, 8, 16], ("stage4",)).to_dict()
    network = hf.ResNetForImageClassification(hf.ResNetConfig(**{**config, **LABELS}))
    return network, hf.ConvNextImageProcessor(size={"shortest_edge": 65})


def detr(hf: Any) -> tuple[nn.Module, Any]:
    backbone = _resnet(hf, "ResNetConfig", [8, 8, 8, 16], ("stage4",))
    network = hf.DetrForObjectDetection(hf.DetrConfig(backbone_config=backbone, **DECODER, **LABELS))
    return network, hf.DetrImageProcessor(size=SIZES)


def conditional_detr(hf: Any) -> tuple[nn.Module, Any]:
    backbone = _resnet(hf, "ResNetConfig", [8, 8, 8, 16], ("stage4",))
    config = hf.ConditionalDetrConfig(backbone_config=backbone, **DECODER, **LABELS)
    return hf.ConditionalDetrForObjectDetection(config), hf.ConditionalDetrImageProcessor(size=SIZES)


def yolos(hf: Any) -> tuple[nn.Module, Any]:
    options = {**VIT, "image_size": [96, 160], "patch_size": 16, "num_detection_tokens": 20}
    network = hf.YolosForObjectDetection(hf.YolosConfig(**options, **LABELS))
    return network, hf.YolosImageProcessor(size=SIZES)


def rt_detr(hf: Any, version: str = "") -> tuple[nn.Module, Any]:
    backbone = _resnet(hf, "RTDetrResNetConfig", [8, 8, 16, 16], ("stage2", "stage3", "stage4"))
    config = getattr(hf, f"RTDetr{version}Config")(backbone_config=backbone, **RT_DETR, **LABELS)
    network = getattr(hf, f"RTDetr{version}ForObjectDetection")(config)
    return network, hf.RTDetrImageProcessor(size={"height": 96, "width": 96})


def rt_detr_v2(hf: Any) -> tuple[nn.Module, Any]:
    return rt_detr(hf, "V2")


def segformer(hf: Any) -> tuple[nn.Module, Any]:
    options = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4}
    config = hf.SegformerConfig(**options, decoder_hidden_size=8, **LABELS)
    return hf.SegformerForSemanticSegmentation(config), hf.SegformerImageProcessor(
        size={"height": 64, "width": 64}
    )


def videomae(hf: Any) -> tuple[nn.Module, Any]:
    config = hf.VideoMAEConfig(**VIT, num_frames=4, tubelet_size=2, **LABELS)
    processor = hf.VideoMAEImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    return hf.VideoMAEForVideoClassification(config), processor


def saved(hf: Any, make: Callable[..., tuple[nn.Module, Any]], folder: Path, **options: Any) -> nn.Module:
    """The network, with answers that differ from class to class, and its folder beside it.

    Norms get their statistics from noise: with fresh ones scores tie, and rounding decides which come first.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, processor = make(hf, **options)
        config: Any = network.config
        size = getattr(config, "image_size", 96)
        side = size if isinstance(size, int) else 96
        for tensor in network.parameters():
            # Tokens that begin as zeros would all find the same.
            if tensor.ndim >= 3 and not tensor.any():
                nn.init.normal_(tensor)
        for module in network.modules():
            # As they are initialised, all queries find nearly the same.
            if isinstance(module, nn.Linear):
                last = module.out_features in (len(NAMES), len(NAMES) + 1)
                nn.init.normal_(module.weight, std=(2 if last else 1.5) * module.in_features**-0.5)
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        if config.model_type.startswith(("rt_detr", "resnet")):
            with torch.no_grad():
                network.train()(torch.randn(2, 3, side, side))
    whole: Any = network.eval()
    whole.save_pretrained(folder)
    processor.save_pretrained(folder)
    return network


def changed(folder: Path, file: str = "config.json", **fields: Any) -> Path:
    """The folder, with other fields in one of its JSON files; None: without it."""
    path = folder / file
    said: Mapping[str, Any] = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not None}))
    return folder
