"""Runs and models in MLflow; no other room knows it.

- `store`: connect, log a training run, register a version, find the champion
- `scores`: a candidate's scores as metrics, none without persons, interval and floor
- `pyfunc`: the code that MLflow stores with a generator (models-from-code)
"""
