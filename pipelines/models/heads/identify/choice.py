"""The one reading among several: the surest that values on pictures do not contradict. Knows no shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipelines.models.heads.identify.candidate import BY_NAME, BY_SHAPE, PERHAPS, Candidate
from pipelines.models.heads.identify.dense import demanded, dense
from pipelines.models.heads.identify.evidence import Evidence
from pipelines.models.heads.identify.lists import lists
from pipelines.models.heads.identify.pairs import demanded_queries, pairs
from pipelines.models.heads.identify.plausibility import contradiction, found_nothing, needs_boxes
from pipelines.protocol.errors import ModelUnavailable

MOST_REASONS = 4
# What heads read, for people.
FORMS = {
    "boxes": "boxes (N, D, 4), labels (N, D) and scores (N, D)",
    "boxes_scores": "boxes (N, A, 4) and scores (N, A, K)",
    "detr": "logits (N, Q, K) and boxes (N, Q, 4), or both in one (N, Q, 4 + K)",
    "end_to_end": "rows (N, M, 6) or (M, 7)",
    "ssd": "(1, 1, M, 7), or boxes (N, M, 5) and labels (N, M)",
    "yolo_v5": "rows (N, A, 5 + K)",
    "yolo_v8": "columns (N, 4 + K, A)",
    "yolox": "rows (N, A, 5 + K)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A reading, and what was assumed with it."""

    candidate: Candidate
    assumed: tuple[str, ...] = ()


def readings(evidence: Evidence) -> list[Candidate]:
    """All that may fit; what reads one output is less sure, where several can be read together."""
    several, single = [*lists(evidence), *pairs(evidence)], list(dense(evidence))
    if any(one.level >= BY_SHAPE for one in several):
        single = [replace(one, level=PERHAPS) for one in single]
    return [*several, *single]


def choose(candidates: Sequence[Candidate], evidence: Evidence) -> Chosen | None:
    """The one that fits; None: the values contradict all, or there is none.

    Raises:
        ModelUnavailable: several fit. It names them. Or the only ones that fit are in doubt.
    """
    for level in (BY_NAME, BY_SHAPE, PERHAPS):
        found = [one for one in candidates if one.level == level and not refuted(one, evidence)]
        fits = [one for one in found if not one.doubt]
        if found and not fits:
            hint = "give --labels, with the background first if it has a column, or without it if it has none"
            raise ModelUnavailable(found[0].doubt, hint=hint)
        if len(fits) == 1:
            return Chosen(candidate=fits[0], assumed=_texts(fits[0]))
        if fits:
            return _tie(fits, evidence)
    return None


def refuted(candidate: Candidate, evidence: Evidence) -> str:
    """What the values say against a reading; empty: nothing, or they are not known."""
    if evidence.size_hw is None:
        return ""
    head = candidate.head
    for outputs in evidence.on_pictures(head.pixels(evidence.size_hw)):
        if wrong := contradiction(head, outputs, evidence.size_hw):
            return wrong
    return ""


def _texts(candidate: Candidate) -> tuple[str, ...]:
    return (f"head {candidate.head.family}, since {candidate.why} (else: --head)",) if candidate.why else ()


def _tie(fits: Sequence[Candidate], evidence: Evidence) -> Chosen:
    """Boxes in 0..1 need to be seen; where nothing is found, boxes are taken for pixels."""
    size_hw = evidence.size_hw
    plain = [one for one in fits if not needs_boxes(one.head)]
    if len(plain) == 1 and size_hw is not None:
        head = plain[0].head
        runs = evidence.on_pictures(head.pixels(size_hw))
        if runs and found_nothing(head, runs, size_hw):
            text = "boxes are read as corners in pixels: no test picture has a box that shows it"
            return Chosen(candidate=plain[0], assumed=(*_texts(plain[0]), text))
    reasons = "; ".join(dict.fromkeys(str(one) for one in fits[:MOST_REASONS]))
    raise ModelUnavailable(
        f"its outputs can be read in more than one way: {reasons}", hint=_hint(fits, evidence)
    )


def _hint(fits: Sequence[Candidate], evidence: Evidence) -> str:
    """What decides between readings."""
    ways = []
    families = sorted({one.head.family for one in fits})
    first = dict.fromkeys(one.read[0] for one in fits if one.read)
    if len(families) > 1:
        ways.append(f"name one: {' or '.join(f'--head {family}' for family in families)}")
    if len(first) > 1:
        ways.append(f"name an output: {' or '.join(f'--output {name}' for name in first)}")
    if not evidence.count and (len(families) > 1 or len(first) == 1):
        ways.append("give --labels: the number of labels decides")
    if evidence.size_hw is None:
        ways.append("give --resize-px HEIGHTxWIDTH, so that it can be tried")
    return ", or ".join(ways) or "export it with its boxes decoded"


def reading(candidates: Iterable[Candidate], output: str) -> list[Candidate]:
    """Those that read an output; empty: any."""
    return [one for one in candidates if not output or output in one.read]


def choose_demanded(family: str, evidence: Evidence, output: str = "") -> Chosen:
    """The reading that a user demands, of an output or of any; what speaks against it is said.

    Raises:
        ModelUnavailable: the outputs do not have its shape, or it has several forms and none is plausible.
    """
    fits = reading((one for one in readings(evidence) if one.head.family == family), output)
    fits = fits or reading(demanded_queries(evidence) if family == "detr" else (), output)
    fits = fits or reading(demanded(evidence, family), output)
    listed = "; ".join(map(str, evidence.outputs)) or "none"
    if not fits:
        none = f"{output} is not" if output else "none of its outputs is"
        wrong = f"--head {family}: {none} of that form: {listed}"
        raise ModelUnavailable(wrong, hint=f"{family} reads {FORMS.get(family, 'other outputs')}")
    if found := choose(fits, evidence):
        return Chosen(candidate=found.candidate, assumed=_details(found))
    reason = refuted(fits[0], evidence)
    if len(fits) > 1:
        wrong = f"--head {family}: its outputs do not look like that: {reason}"
        raise ModelUnavailable(wrong, hint="leave out --head, or export it with its boxes decoded")
    return Chosen(candidate=fits[0], assumed=(f"head {family}, as --head says, although {reason}",))


def _details(found: Chosen) -> tuple[str, ...]:
    """The head is no assumption then, but its form may be."""
    why = found.candidate.why
    first = (f"head {found.candidate.head.family}, as --head says: {why}",) if why else ()
    return (*first, *(text for text in found.assumed if "--head" not in text))
