"""The mammography system's JSON: every key mapped, replaced or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rarescan.classifiers.foreign_config import translate
from rarescan.configs.schema import RunConfig, load_config
from rarescan.errors import SettingError

CHECKPOINT = {
    "ModelCheckpoint": {
        "filepath": "model.h5",
        "monitor": "val_loss",
        "save_best_only": True,
        "save_weights_only": False,
        "mode": "auto",
        "save_freq": "epoch",
    }
}
WHOLE = {
    "epochs": 10,
    "batch_size": 16,
    "learning_rate": 0.0001,
    "num_workers": 4,
    "optimizer": "adam",
    "loss": "cross_entropy",
    "metrics": ["accuracy"],
    "encoder": "resnet18",
    "validation_split": 0.25,
    "shuffle": True,
    "verbose": 1,
    "augmentation": False,
    "callbacks": CHECKPOINT,
    "model_save_dir": "export_model",
    "model_name": "config_2",
    "wandb": {"project": "mammo", "entity": "us", "name": "second"},
}


@pytest.fixture
def read(tmp_path: Path, pictures: Path) -> Any:
    """Return the function that reads keys for 72 pictures, as settings and notes."""

    def read_keys(keys: dict[str, Any]) -> tuple[RunConfig, list[str]]:
        path = tmp_path / "config_2.json"
        path.write_text(json.dumps(keys))
        found = translate(path, pictures)
        return load_config(None, found.overrides), found.notes

    return read_keys


def test_every_key_sets_something_or_a_note_says_what_stands_in_its_place(read: Any) -> None:
    config, notes = read(WHOLE)
    network = config.classify.network
    assert (network.network, network.batch_size, network.learning_rate) == ("resnet18", 16, 1e-4)
    assert (network.augmentation, network.weight_decay) == (0, 0)
    # 10 epochs of 72 scans, of which 4/5 are a fold's and 3/4 of these trained on.
    assert network.steps == 27
    assert network.patience > 20
    assert config.classify.validation == 0.25
    assert (config.workers, config.name) == (4, "second")
    assert config.registry.experiment == "mammo"
    replaced = {"epochs", "optimizer", "loss", "metrics", "shuffle", "verbose", "callbacks"}
    assert {note.split(":")[0] for note in notes} >= replaced | {"model_save_dir", "wandb"}


def test_without_keys_the_systems_own_defaults_hold(read: Any) -> None:
    network = read({})[0].classify.network
    assert (network.network, network.batch_size, network.learning_rate) == ("resnet50", 32, 0.001)
    assert network.augmentation == 1


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("optimizer", "sgd", "adam"),
        ("encoder", "AlexNet", "resnet18 or resnet50"),
        ("loss", "focal", "follows from the classes"),
        ("metrics", ["auc"], "all of them"),
        ("shuffle", False, "Leave it out"),
        ("verbose", 2, "stderr"),
        ("augmentation", "False", "true or false"),
        ("epochs", 0, "whole number"),
        ("batch_size", True, "whole number"),
        ("callbacks", {"EarlyStopping": {}}, "ModelCheckpoint"),
        ("callbacks", {"ModelCheckpoint": {"monitor": "val_acc"}}, "val_loss"),
        ("wandb", {"key": "secret"}, "project, entity and name"),
    ],
)
def test_a_value_that_would_do_nothing_is_refused_with_what_to_write(
    key: str, value: Any, remedy: str, read: Any
) -> None:
    """T32: the text "False" is no truth value."""
    with pytest.raises(SettingError, match=remedy):
        read({key: value})


def test_an_unknown_key_names_the_nearest(read: Any) -> None:
    with pytest.raises(SettingError, match="Did you mean 'epochs'"):
        read({"epoch": 3})


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_what_is_no_json_object_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingError):
        translate(path, tmp_path)


def test_what_is_written_beside_the_result_is_yaml_that_runs_again(read: Any) -> None:
    from rarescan.configs.schema import dump_config, parse_config

    config, _ = read(WHOLE)
    assert parse_config(yaml.safe_load(dump_config(config))) == config
