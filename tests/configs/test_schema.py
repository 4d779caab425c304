import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rarescan.configs.schema import (
    RunConfig,
    dump_config,
    json_schema,
    load_config,
    parse_config,
    plain_config,
    presets,
)
from rarescan.errors import SettingError


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid_and_its_dump_runs_again(name: str) -> None:
    config = load_config(name)
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_no_file_gives_the_defaults() -> None:
    assert load_config() == RunConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prepare.spacing=4", "'prepare.spacing' is no setting. Did you mean 'spacing_mm'?"),
        ("prepare.spacing_mm=-1", "'prepare.spacing_mm': input should be greater"),
        ("prepare.spacing_mm='4'", "'prepare.spacing_mm': input should be a valid number"),
        ("train.vae.step=4", "'train.vae.step' is no setting. Did you mean 'steps'?"),
        ("sourse.kind=dicom", "'sourse' is no setting. Did you mean 'source'?"),
        ("prepare", "is no override"),
        ("name.first=x", "'name' is a value"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_nearest_right_one(
    override: str, message: str
) -> None:
    with pytest.raises(SettingError) as caught:
        load_config("demo", [override])
    assert message in str(caught.value)


def test_an_override_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nprepare: {spacing_mm: 2}\n")
    assert load_config(path).prepare.spacing_mm == 2
    assert load_config(path, ["prepare.spacing_mm=4"]).prepare.spacing_mm == 4
    assert load_config(path).root == Path("runs/mine")


def test_a_candidate_takes_its_family_from_its_name_unless_it_says_otherwise() -> None:
    config = parse_config({"train": {"gan": {}, "large": {"family": "diffusion", "steps": 9}}})
    assert [spec.family for spec in config.train.values()] == ["gan", "diffusion"]


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "\xff"])
def test_a_file_that_is_no_settings_file_is_an_error_with_a_remedy(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingError, match=r"bad\.yaml"):
        load_config(path)


def test_a_missing_file_names_the_presets() -> None:
    with pytest.raises(SettingError, match="demo"):
        load_config("no-such-preset")


def test_every_key_has_a_description() -> None:
    undocumented = [
        f"{name}.{key}"
        for name, section in json_schema()["$defs"].items()
        for key, value in section["properties"].items()
        if "description" not in value and "$ref" not in value
    ]
    assert undocumented == []


def test_plain_settings_hold_json_values_only() -> None:
    assert parse_config(plain_config(load_config("demo"))) == load_config("demo")


def test_showing_settings_imports_nothing_heavy() -> None:
    code = (
        "import sys; from rarescan.cli import verbs; from rarescan.configs.schema import *;"
        "dump_config(load_config('demo'));"
        "heavy = {'torch','monai','mlflow','prefect','SimpleITK','pydicom','pandas','sklearn'};"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0
