"""The code that MLflow stores with a generator (models-from-code: no pickle).

`mlflow.pyfunc.load_model("models:/rarescan-generator@champion").predict(conditions)` takes a table
with the columns `diagnosis`, `age_years`, `sex`, `site`, `severity` (all but the first may be
missing) and returns float32 volumes, shape (rows, x, y, z), values 0 to 1. The parameters `seed`
and `first_index` name the scans: row i is scan `first_index + i` of that seed, the same bytes
whatever else stands in the table.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from rarescan.cohort.contracts import Condition
from rarescan.generative.families import load_generator


class GeneratorModel(PythonModel):
    """One generator, loaded once."""

    def load_context(self, context: Any) -> None:
        """Load the weights that lie beside this file."""
        self._generator = load_generator(Path(context.artifacts["generator"]))

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002
        """Return one volume a row, shape (rows, x, y, z)."""
        params = params or {}
        conditions = [_condition(row) for row in model_input.to_dict("records")]
        volumes = self._generator.sample(
            conditions,
            int(params.get("seed", 0)),
            first_index=int(params.get("first_index", 0)),
        )
        return np.stack(list(volumes))


def _condition(row: dict[str, Any]) -> Condition:
    known = {key: value for key, value in row.items() if value is not None and value == value}
    return Condition(
        diagnosis=str(known["diagnosis"]),
        age_years=float(known["age_years"]) if "age_years" in known else None,
        sex=known.get("sex"),
        site=known.get("site"),
        severity=float(known["severity"]) if "severity" in known else None,
    )


set_model(GeneratorModel())
