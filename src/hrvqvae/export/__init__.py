"""Trained models as graphs that run without this package: ONNX, checked against torch."""
