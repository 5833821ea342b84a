"""Programs for developers, started as modules: `python -m scripts.bench`. The server imports none of them."""
