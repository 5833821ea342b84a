"""The TASKS table: one file a task. A task reads options, reads the model's output, and makes the answer."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.models.spec import TaskName
from pipelines.tasks.action import TASK as ACTION
from pipelines.tasks.classification import TASK as CLASSIFICATION
from pipelines.tasks.detection import TASK as DETECTION
from pipelines.tasks.embedding import TASK as EMBEDDING
from pipelines.tasks.job import Task
from pipelines.tasks.segmentation import TASK as SEGMENTATION

TASKS: Mapping[TaskName, Task] = {
    "classification": CLASSIFICATION,
    "detection": DETECTION,
    "segmentation": SEGMENTATION,
    "action": ACTION,
    "embedding": EMBEDDING,
}
