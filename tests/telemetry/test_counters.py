"""Counters, gauges and seconds, as the status shows them."""

from __future__ import annotations

from pipelines.telemetry.counters import Telemetry


def test_a_snapshot_shows_counters_and_what_gauges_say_then() -> None:
    telemetry, held = Telemetry(), [1]
    telemetry.gauge("streams", "open", lambda: len(held))
    telemetry.count("streams", "started", 2)
    with telemetry.span("decode"):
        held.append(2)
    shown = telemetry.snapshot()
    assert shown["streams"] == {"started": 2, "open": 2}
    assert shown["stage_seconds"].keys() == {"decode"}
    held.clear()
    assert telemetry.snapshot()["streams"]["open"] == 0
    assert shown["streams"]["open"] == 2
