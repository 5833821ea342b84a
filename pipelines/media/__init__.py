"""Encoded bytes to frames: containers, video, images, NVDEC, selection, colours.

Knows no model outputs and no server protocol.
"""
