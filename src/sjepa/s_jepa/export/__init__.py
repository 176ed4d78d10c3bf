"""The encoder as ONNX."""
