"""Memory that a burst of requests has left goes back to the system once nothing runs. Knows no media."""

from __future__ import annotations

from pipelines.machine.admission import Admission
from pipelines.machine.memory import libc, log

# Below this, what requests leave behind is worth more to the next ones than to the system.
MUCH_BYTES = 128 << 20
QUIET_LOOKS = 5


def give_back(device: str) -> None:
    """Give all freed memory back to the system, on a GPU to its other processes. Takes up to a second."""
    libc().malloc_trim(0)
    if device == "cpu":
        return
    import torch

    from pipelines.frames.dali import release_unused

    try:
        torch.cuda.empty_cache()
        release_unused()
    except RuntimeError as error:
        # A GPU that fails is told of by the requests that need it.
        log.warning("the GPU's memory was not given back: %s", error)


class Idleness:
    """Sees when requests that held much have all ended, and none came for a while; to be asked every second.

    Args:
        admission: which knows what requests about media hold.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._quiet_looks = 0

    def begins(self) -> bool:
        """Whether this look is the one at which it is quiet for long enough, since much was held."""
        self._quiet_looks = 0 if self._admission.held_bytes else self._quiet_looks + 1
        if self._quiet_looks < QUIET_LOOKS or self._admission.most_bytes < MUCH_BYTES:
            return False
        self._admission.most_bytes = 0
        return True
