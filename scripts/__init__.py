"""Programs for developers, started as modules: `python -m scripts.bench`. The server imports none of them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
