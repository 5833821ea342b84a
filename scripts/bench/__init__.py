"""The bench: stages, ceiling, throughput and latency, peers, scenarios. Start it with `python -m
scripts.bench`.
"""
