"""Which classes a request names. Knows no task and no model but its labels."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.protocol.errors import InvalidOptions
from pipelines.protocol.options import Options

# Of a thousand labels, a hint lists these many.
HINT_LABELS = 100


def class_ids(options: Options, labels: Sequence[str]) -> tuple[int, ...]:
    """The numbers of the classes that the options name, in their order; empty if they name none.

    Args:
        labels: names by number; empty where the model's are not known, when any number goes but no name.

    Raises:
        InvalidOptions: no class has that name or number; the hint lists those that there are.
    """
    if options.class_name:
        return _named(options.class_name, labels)
    if labels and options.class_id >= len(labels):
        raise InvalidOptions(
            f"class_id={options.class_id} is out of range 0 to {len(labels) - 1}", hint=_known(labels)
        )
    return (options.class_id,) if options.class_id >= 0 else ()


def _named(class_name: str, labels: Sequence[str]) -> tuple[int, ...]:
    # A label may hold a comma itself.
    names = [class_name] if class_name in labels else [name.strip() for name in class_name.split(",")]
    for name in names:
        if name not in labels:
            raise InvalidOptions(f"unknown class_name {name!r}", hint=_known(labels))
    # Labels may have a name twice, as COCO's have "N/A".
    return tuple(
        dict.fromkeys(number for name in names for number, label in enumerate(labels) if label == name)
    )


def _known(labels: Sequence[str]) -> str:
    if not labels:
        return "this model's classes have no names: use class_id"
    more = f" and {len(labels) - HINT_LABELS} more" if len(labels) > HINT_LABELS else ""
    return f"this model knows: {', '.join(labels[:HINT_LABELS])}{more}"
