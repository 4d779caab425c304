"""A model of others in MLflow scores images; what MLflow will not open is said in one line."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from rarescan.errors import InputError
from rarescan.registry.foreign import open_pyfunc
from rarescan.registry.spec import RegistryConfig
from rarescan.registry.store import connect

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
CODE = """
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

class Mean(PythonModel):
    def predict(self, context, model_input, params=None):
        assert model_input.ndim == {rank}
        return model_input.reshape(len(model_input), -1).mean(axis=1)

set_model(Mean())
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a folder whose registry holds a model for four dimensions, and one without schema."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect(RegistryConfig(), folder)
        mlflow.set_experiment("rarescan")  # whose artifacts lie below the folder
        schema = Schema([TensorSpec(np.dtype("float32"), (-1, 3, 4, 5))])
        for name, rank, signature in (("four", 4, ModelSignature(schema)), ("plain", 5, None)):
            code = folder / f"{name}.py"
            code.write_text(CODE.format(rank=rank))
            with mlflow.start_run():
                mlflow.pyfunc.log_model(
                    name=name, python_model=str(code), registered_model_name=name,
                    signature=signature, pip_requirements=["numpy"],
                )  # fmt: skip
        yield folder


@pytest.mark.long
@pytest.mark.parametrize("name", ["four", "plain"])
def test_a_model_gets_images_of_the_shape_that_it_says(runs: Path, name: str) -> None:
    images = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    score = open_pyfunc(RegistryConfig(), runs, f"models:/{name}/1")
    np.testing.assert_allclose(score(images), images.mean(axis=(1, 2, 3)), rtol=1e-6)
    assert not Path("mlruns").exists()


@pytest.mark.long
def test_an_address_without_a_model_is_refused(runs: Path) -> None:
    with pytest.raises(InputError, match="models:/absent/1 cannot be opened"):
        open_pyfunc(RegistryConfig(), runs, "models:/absent/1")
