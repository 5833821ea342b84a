"""The embedded demo models: where their weights lie and how they are fed. Knows no options."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn

from pipelines.models.spec import Clip, ModelSpec, Preprocessing, TaskName
from pipelines.zoo.demo.networks import DEMO_FACTS, DemoTask, build_demo
from pipelines.zoo.files.fitting import load_state
from pipelines.zoo.files.state import read_state

ASSETS = Path(__file__).parents[3] / "assets"
MAX_BATCH = 16


def demo_specs() -> dict[TaskName, ModelSpec]:
    """The demo models, made by python -m scripts.demo.train: toys for trying the server out.

    They know drawn circles, squares, triangles and stars, each in its own family of colours; colour is what
    they mostly go by, so they say nothing of other pictures.
    """
    return {task: _spec(task) for task in DEMO_FACTS if demo_weights(task).is_file()}


def demo_weights(task: DemoTask) -> Path:
    """Where the weights of a demo model lie."""
    return ASSETS / f"demo_{task}.safetensors"


def _spec(task: DemoTask) -> ModelSpec:
    facts = DEMO_FACTS[task]
    clip = Clip(length=facts.clip_frames, fps=facts.clip_rate_hz) if facts.clip_frames else None
    return ModelSpec(
        name=f"demo_{task}",
        task=task,
        build=partial(_build, task),
        source=f"demo model, {demo_weights(task).name}: drawn shapes in fixed colours, for trying "
        "out the server",
        labels=facts.labels,
        preprocessing=Preprocessing(resize_px=facts.resize_px, mean=facts.mean, std=facts.std),
        max_batch=MAX_BATCH,
        thread_safe=True,
        clip=clip,
    )


def _build(task: DemoTask) -> nn.Module:
    network = build_demo(task)
    path = demo_weights(task)
    load_state(network, read_state(path), path)
    return network
