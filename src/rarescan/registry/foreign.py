"""Models of others, stored in MLflow, as functions that score images.

`open_pyfunc` is the way in. MLflow is told not to open pickles; a model stored as code is a
program, so name only addresses that you trust.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError
from rarescan.registry.spec import RegistryConfig
from rarescan.registry.store import connect

_RANKS = (4, 5)


def open_pyfunc(config: RegistryConfig, runs: Path, uri: str) -> Callable[[FloatArray], Any]:
    """Return what scores images with an `mlflow.pyfunc` model.

    Its `predict` is given float32 arrays, shape (n, x, y, z) where its signature has four
    dimensions, else (n, 1, x, y, z).

    Raises
    ------
    InputError
        The registry has no such model, or MLflow does not open it.
    UnreachableError
        The server did not answer.
    """
    connect(config, runs)
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        model = mlflow.pyfunc.load_model(uri)
    except (MlflowException, OSError, ImportError) as error:
        raise InputError(
            f"The model {uri} cannot be opened ({type(error).__name__}).",
            remedy="Name an ONNX file (`.onnx`) or the address of an mlflow.pyfunc model that is "
            "stored as code, as models:/name/1.",
        ) from None
    inputs = model.metadata.get_input_schema()
    shape = inputs.inputs[0].shape if inputs is not None and inputs.is_tensor_spec() else ()
    rank = len(shape) if len(shape) in _RANKS else max(_RANKS)

    def score(images: FloatArray) -> Any:
        shaped = images if rank == min(_RANKS) else images[:, None]
        return np.asarray(model.predict(np.ascontiguousarray(shaped, np.float32)))

    return score
