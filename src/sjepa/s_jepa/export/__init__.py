"""ONNX export of the encoder."""
