"""Decoded frames (`FrameBatch`), where a model looks (`Geometry`), and how frames become model pixels.

Knows no decoder and computes no network.
"""
