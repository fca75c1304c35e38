"""Networks for other runtimes. Nothing of ONNX is imported before something is exported."""
