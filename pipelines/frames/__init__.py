"""Decoded frames (`FrameBatch`), where a model looks (`Geometry`), and frames to model pixels.

Knows no decoder and computes no network.
"""
