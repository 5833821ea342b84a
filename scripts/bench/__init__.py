"""The bench: stages, ceiling, throughput, latency, comparisons, scenarios: `python -m scripts.bench`."""
