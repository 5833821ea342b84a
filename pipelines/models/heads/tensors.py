"""A network's outputs by name or by form, for heads; what is said where none fits. Knows no family."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from pipelines.models.spec import MAX_BATCH
from pipelines.protocol.errors import ModelUnavailable

OTHER_WAYS = "--output names another one, --head another family, --labels a file with a name for each class"


def pick(
    outputs: Mapping[str, Tensor],
    name: str,
    fits: Callable[[Tensor], bool],
    needs: str,
    hint: str = OTHER_WAYS,
) -> Tensor:
    """The output of that name, or the first that fits; it fits.

    Args:
        name: empty for the first one that fits.
        needs: what is expected and by whom, for messages: "head yolo_v5 needs (N, A, 5 + K)".

    Raises:
        ModelUnavailable: there is none, or it does not fit.
    """
    if name and name not in outputs:
        raise ModelUnavailable(f"{needs} in output {name}; the model gives {described(outputs)}", hint=hint)
    for tensor in [outputs[name]] if name else outputs.values():
        if fits(tensor):
            return tensor
    given = {name: outputs[name]} if name else outputs
    raise ModelUnavailable(f"{needs}; the model gives {described(given)}", hint=hint)


def without(outputs: Mapping[str, Tensor], other: str | Tensor, name: str) -> Mapping[str, Tensor]:
    """For `pick`: all outputs if one is named, else those that are not the `other` one."""
    if name:
        return outputs
    return {one: tensor for one, tensor in outputs.items() if one != other and tensor is not other}


def picture_numbers(number_c: Tensor, needs: str) -> tuple[Tensor, int]:
    """The numbers of pictures that rows begin with, as integers, and how many pictures that makes: 1 or more.

    Raises:
        ModelUnavailable: a number is none that a batch has, so that the rows are others.
    """
    last = float(number_c.amax()) if len(number_c) else 0.0
    if not last < MAX_BATCH - 0.5:
        raise ModelUnavailable(
            f"{needs} that begins with a picture's number, not {last:.0f}", hint=OTHER_WAYS
        )
    return number_c.round().long(), round(last) + 1


def described(outputs: Mapping[str, Tensor]) -> str:
    """Names and shapes, for messages."""
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in outputs.items()) or "nothing"


def check_names(classes: int, allowed: tuple[int, ...], family: str, tensor: Tensor) -> None:
    """Check that a network has one of the `allowed` numbers of classes, if it has names at all.

    Raises:
        ModelUnavailable: it has others.
    """
    if classes and classes not in allowed:
        numbers = " or ".join(map(str, allowed))
        raise ModelUnavailable(
            f"head {family} reads {numbers} classes in {tuple(tensor.shape)}, and there are {classes} labels",
            hint="--labels: a file with one label per line",
        )
