"""Joins frames of all streams into batches and splits the outputs. Knows no media and no tasks."""
