"""What a whole medium shows, in one line: counted from its answers as they come. Knows no connection, no files."""

from __future__ import annotations

from collections import Counter

import numpy as np

from pipelines.results import (
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    SegmentationAnswer,
)

NAMED = 5


class Summary:
    """The classes that a file shows most of."""

    def __init__(self) -> None:
        self._rows, self._decoder, self._noun = 0, "", "frame"
        self._counts: Counter[str] = Counter()
        self._total = 0
        self._words: list[str] = []

    def add(self, answer: Answer) -> None:
        self._rows += len(answer)
        self._decoder = answer.decoder
        if isinstance(answer, SegmentationAnswer):
            if len(answer):
                self._add_pixels(answer)
        elif isinstance(answer, DetectionAnswer):
            self._counts.update(answer.class_name.tolist())
            boxes = sum(self._counts.values())
            classes = [f"{name} {count}" for name, count in self._counts.most_common(NAMED)]
            self._words = [f"{boxes} {_plural('box', boxes)}", *classes]
        elif isinstance(answer, ClassificationAnswer | ActionAnswer):
            self._noun = "clip" if isinstance(answer, ActionAnswer) else "frame"
            ranked = zip(answer.mean_class_name, answer.mean_probability, strict=False)
            self._words = [f"{name} {100 * value:.2f} %" for name, value in ranked][:NAMED]

    def _add_pixels(self, answer: SegmentationAnswer) -> None:
        self._counts.update(
            dict(zip(answer.class_names, answer.class_pixels.sum(axis=0).tolist(), strict=True))
        )
        self._total = max(int(np.sum(list(self._counts.values()))), 1)
        foreground = Counter(
            {name: self._counts[name] for name in answer.class_names[1:] if self._counts[name]}
        )
        shares = [
            f"{name} {100 * count / self._total:.1f} %" for name, count in foreground.most_common(NAMED)
        ]
        self._words = shares or ["nothing but background"]

    def __str__(self) -> str:
        if not self._rows:
            return f"0 {self._noun}s: the options select none, or too few"
        return f"{self._rows} {_plural(self._noun, self._rows)}, {', '.join(self._words)} ({self._decoder})"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}es" if noun.endswith("x") else f"{noun}s"
