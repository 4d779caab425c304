"""The mammography system's JSON, read as settings of ours: every key mapped, replaced or refused.

`translate` is the way in. In that system half of the keys did nothing (a number of workers went
to `shuffle`, an augmentation that did not exist). Here a key either sets something, or a note
says what stands in its place, or the file is refused with what to write instead.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rarescan.classifiers.modalities import modality_of
from rarescan.classifiers.spec import ClassifyConfig
from rarescan.classifiers.splits import label_table
from rarescan.cohort.store import open_cohort
from rarescan.errors import SettingError, nearest

_DEFAULTS: Mapping[str, Any] = {
    "epochs": 20,
    "batch_size": 32,
    "learning_rate": 0.001,
    "optimizer": "adam",
    "loss": "cross_entropy",
    "encoder": "resnet50",
    "validation_split": 0.2,
    "augmentation": True,
}
"""The system's own: its file is laid over them, as `cfgs/default_cfg.json` was."""


@dataclass(kw_only=True)
class Translated:
    """Settings of ours, and what became of keys that set none."""

    overrides: list[str] = field(default_factory=list)
    """`key=value`, as for `--set`."""
    notes: list[str] = field(default_factory=list)

    def set(self, key: str, value: Any) -> None:
        """Set one key of ours."""
        self.overrides.append(f"{key}={json.dumps(value)}")


def translate(path: Path, prepared: Path) -> Translated:
    """Read a JSON of the mammography system for a prepared cohort.

    Parameters
    ----------
    path : Path
        `cfgs/config_<n>.json`.
    prepared : Path
        Epochs become steps by the number of its scans.

    Raises
    ------
    SettingError
        No JSON object, an unknown key, or a value that nothing here does.
    """
    given = _read(path)
    for key in given:
        if key not in _KEYS:
            raise SettingError(
                f"'{key}' is no key of the mammography system.", remedy=nearest(key, [*_KEYS])
            )
    values = {**_DEFAULTS, **given}
    found = Translated()
    for key, value in values.items():
        if key not in ("epochs", "batch_size"):
            _KEYS[key](found, value)
    _steps(found, values, prepared)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise SettingError(f"There is no {path}.", remedy="Correct the path.") from None
    except (ValueError, UnicodeDecodeError):
        raise SettingError(f"{path} is no valid JSON.", remedy="Correct the file.") from None
    if not isinstance(values, dict):
        raise SettingError(f"{path} holds no keys.", remedy='Write {"epochs": 20, ...}.')
    return values


def _steps(found: Translated, values: Mapping[str, Any], prepared: Path) -> None:
    """Turn epochs into steps: that many times through a fold's training scans."""
    for key in ("epochs", "batch_size"):
        if not isinstance(values[key], int) or isinstance(values[key], bool) or values[key] < 1:
            raise _refused(key, values[key], "Write a whole number above 0.")
    cohort, config = open_cohort(prepared), ClassifyConfig()
    n_scans = len(label_table(cohort, config, modality_of(cohort)).scans)
    share = (1 - 1 / config.folds) * (1 - values["validation_split"])
    steps = math.ceil(round(values["epochs"] * n_scans * share / values["batch_size"], 6))
    found.set("classify.network.batch_size", values["batch_size"])
    found.set("classify.network.steps", max(steps, 10))
    found.notes.append(f"epochs: {values['epochs']} epochs are {max(steps, 10)} steps here.")


def _refused(key: str, value: Any, remedy: str) -> SettingError:
    return SettingError(f"'{key}': {value!r} has no effect here.", remedy=remedy)


def _optimizer(found: Translated, value: Any) -> None:
    if value != "adam":
        raise _refused("optimizer", value, "Write adam: the one training loop uses AdamW.")
    found.set("classify.network.weight_decay", 0.0)
    found.notes.append("optimizer: AdamW without weight decay, which is Adam.")


def _encoder(found: Translated, value: Any) -> None:
    if value not in ("resnet18", "resnet50"):
        raise _refused("encoder", value, "Write resnet18 or resnet50 (AlexNet failed there too).")
    found.set("classify.network.network", value)


def _loss(found: Translated, value: Any) -> None:
    if value not in ("cross_entropy", "categorical_crossentropy", "bce"):
        raise _refused("loss", value, "Leave it out: the loss follows from the classes.")
    found.notes.append("loss: cross-entropy, binary for two classes.")


def _augmentation(found: Translated, value: Any) -> None:
    if not isinstance(value, bool):
        raise _refused("augmentation", value, "Write true or false.")
    found.set("classify.network.augmentation", 1.0 if value else 0.0)


def _metrics(found: Translated, value: Any) -> None:
    if value != ["accuracy"]:
        raise _refused("metrics", value, "Leave it out: the page has all of them.")
    found.notes.append("metrics: accuracy and all others, with intervals over persons.")


def _always(key: str, value: Any, allowed: tuple[Any, ...], note: str) -> None:
    if value not in allowed:
        raise _refused(key, value, f"Leave it out: {note}.")


def _shuffle(found: Translated, value: Any) -> None:
    _always("shuffle", value, (True,), "training scans are always shuffled")
    found.notes.append("shuffle: training scans always are, held-out ones never.")


def _verbose(found: Translated, value: Any) -> None:
    _always("verbose", value, (1,), "progress is always shown on stderr")
    found.notes.append("verbose: progress is shown on stderr.")


def _callbacks(found: Translated, value: Any) -> None:
    """Map the one callback: keep the weights with the lowest validation loss."""
    known = {"filepath", "monitor", "save_best_only", "save_weights_only", "mode", "save_freq"}
    options = value.get("ModelCheckpoint") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(options, dict) or not set(options) <= known:
        raise _refused("callbacks", value, "Write ModelCheckpoint with the keys that it had.")
    best = (options.get("monitor", "val_loss"), options.get("save_best_only", True))
    if best != ("val_loss", True) or options.get("mode", "min") not in ("min", "auto"):
        raise _refused(
            "callbacks", value, "Write monitor val_loss, save_best_only true and mode min."
        )
    # As many looks as there can be: the best weights are kept, and nothing stops early.
    found.set("classify.network.patience", _ALL_LOOKS)
    found.notes.append("callbacks: the weights with the best validation loss go to the result.")


_ALL_LOOKS = 1000


def _number(key: str) -> Callable[[Translated, Any], None]:
    def set_number(found: Translated, value: Any) -> None:
        found.set(key, value)

    return set_number


def _replaced(note: str) -> Callable[[Translated, Any], None]:
    def tell(found: Translated, _value: Any) -> None:
        found.notes.append(note)

    return tell


def _wandb(found: Translated, value: Any) -> None:
    if not isinstance(value, dict) or not set(value) <= {"project", "entity", "name"}:
        raise _refused("wandb", value, "Write project, entity and name, or leave it out.")
    if "project" in value:
        found.set("registry.experiment", value["project"])
    if "name" in value:
        found.set("name", value["name"])
    found.notes.append("wandb: MLflow keeps the runs; project is its experiment.")


_KEYS: Mapping[str, Callable[[Translated, Any], None]] = {
    "epochs": _replaced(""),
    "batch_size": _replaced(""),
    "learning_rate": _number("classify.network.learning_rate"),
    "num_workers": _number("workers"),
    "optimizer": _optimizer,
    "loss": _loss,
    "metrics": _metrics,
    "encoder": _encoder,
    "validation_split": _number("classify.validation"),
    "shuffle": _shuffle,
    "verbose": _verbose,
    "augmentation": _augmentation,
    "callbacks": _callbacks,
    "model_save_dir": _replaced("model_save_dir: the folder that the command names."),
    "model_name": _number("name"),
    "wandb": _wandb,
}
