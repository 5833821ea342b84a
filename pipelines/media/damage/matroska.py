"""Whether Matroska's elements follow one another without a gap (RFC 8794, RFC 9559). Knows no packets."""

from __future__ import annotations

CLUSTER = b"\x1f\x43\xb6\x75"
# What has elements within; all others that may stand there: those of a segment, those of a cluster.
MASTERS = {0x18538067, 0x1F43B675}
OTHERS = {
    *(0x1A45DFA3, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469),
    *(0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0xAF, 0x5854, 0xEC, 0xBF),
}
# No more elements are read between two packets of a stream: a file may hold many that are empty.
MOST_BETWEEN = 10_000


class Elements:
    """Follows the elements of a file as far as is asked. FFmpeg skips what it cannot read up to a cluster.

    Attributes:
        broken_at: where the first gap is; -1: none so far.
    """

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded
        self._place = 0
        self.broken_at = -1

    def breaks_before(self, place: int) -> bool:
        """Whether there is a gap between the element that was asked for before and the one at a place."""
        broken = False
        for _ in range(MOST_BETWEEN):
            if not 0 <= self._place <= place:
                return broken
            after = self._after(self._place)
            if after < 0:
                self._note()
                broken, after = True, self._encoded.find(CLUSTER, self._place + 1)
            self._place = after
        self._place = -1
        return broken

    def breaks_after(self) -> bool:
        """Whether there is a gap after the element at that place, so that its content may be broken too."""
        gap = 0 <= self._place < len(self._encoded) and self._after(self._place) < 0
        # What stands after the last cluster does no harm.
        if gap and self._encoded.find(CLUSTER, self._place) >= 0:
            self._note()
            return True
        return False

    def _note(self) -> None:
        self.broken_at = self._place if self.broken_at < 0 else self.broken_at

    def _after(self, place: int) -> int:
        """Where the element that begins at a place ends, or what is in it begins; -1: none begins there."""
        kind, place = _number(self._encoded, place, most_bytes=4, keep_marker=True)
        if kind not in MASTERS and kind not in OTHERS:
            return -1
        length, place = _number(self._encoded, place, most_bytes=8, keep_marker=False)
        return -1 if length < 0 else place if kind in MASTERS else place + length


def _number(encoded: bytes, place: int, *, most_bytes: int, keep_marker: bool) -> tuple[int, int]:
    """A number of EBML (RFC 8794, 4), and where it ends; -1: there is none."""
    if place >= len(encoded) or (size := 9 - encoded[place].bit_length()) > most_bytes:
        return -1, place
    value = int.from_bytes(encoded[place : place + size], "big")
    return value if keep_marker else value & ((1 << 7 * size) - 1), place + size
