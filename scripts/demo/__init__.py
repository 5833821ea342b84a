"""The demo: `python -m scripts.demo` runs it, `python -m scripts.demo.train` makes its models."""
