"""What a model is (`spec`), what it gives (`outputs`), and what computes it (torch, ONNX Runtime, OpenVINO).

Knows no media, and not where weights come from.
"""
