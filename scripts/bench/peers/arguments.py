"""The flags of every peer. Imports no peer's libraries."""

from __future__ import annotations

import argparse


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("task", "model", "weights", "device"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--ports", type=int, nargs=3, required=True, help="HTTP's, gRPC's, metrics'")
    return parser.parse_args()
