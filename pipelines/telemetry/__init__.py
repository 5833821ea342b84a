"""Counters and gauges of the process. Knows nothing of what it counts."""
