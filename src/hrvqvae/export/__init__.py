"""Export trained models for use without this package: ONNX graphs and web bundles."""
