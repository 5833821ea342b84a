"""PyTorch networks to ONNX files that say how to be served: `python -m scripts.export`."""
