"""A smaller form of a trained classifier: `compress.compress`, `export.write_onnx`, `load_onnx`."""
