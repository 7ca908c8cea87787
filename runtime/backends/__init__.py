"""What runs a model: the backend protocol, the catalogue of backends, ONNX Runtime and PyTorch."""
