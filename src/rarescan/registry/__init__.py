"""Runs and models in MLflow; no other room knows it.

- `store`: connect, log a training run, register a version, find the champion
- `pyfunc`: the code that MLflow stores with a generator (models-from-code)
"""
