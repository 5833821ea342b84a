"""The TASKS table: one file a task. A task reads options, reads the model's output, and makes the answer."""

from __future__ import annotations

from pipelines.tasks.segmentation import Segmentation

TASKS = {"segmentation": Segmentation}
