"""Ranges of pixels by the names that users know. Knows no networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Mean and std that make of values of 0..1 …
UNIT: Mapping[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
BYTES: Mapping[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
RANGES: Mapping[str, Mapping[str, Any]] = {
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "unit": UNIT,
    "signed": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "bytes": BYTES,
}
