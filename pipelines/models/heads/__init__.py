"""Heads: what families of detectors give → boxes, masks and keypoints in model pixels. One file per family.

A head is a value (`pipelines.models.spec.Head`). It is called on the batcher's thread with the raw outputs
of a batch, on the CPU or a GPU. Knows no files and no media. Which head a network needs says `identify`.
"""
