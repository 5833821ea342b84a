"""Frames of all streams to one batch, and its outputs back to each. Knows no media and no tasks."""
