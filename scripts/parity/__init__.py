"""Pixels and answers beside torchvision's own: `python -m scripts.parity`."""
