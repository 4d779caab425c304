import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rarescan.cli import verbs
from rarescan.cli.main import app
from rarescan.cohort.partition import PartitionConfig
from rarescan.errors import InputError
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import write_prepared

assert verbs  # its commands register themselves on `app`


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "prepared"
    persons = PhantomConfig(patients=8, controls=12, seed=4)
    return write_prepared(folder, persons, spacing_mm=8, partition=PartitionConfig())


def test_a_plan_is_printed_and_nothing_is_written(prepared: Path) -> None:
    before = sorted(prepared.parent.rglob("*"))
    done = CliRunner().invoke(app, ["train", str(prepared), "--plan", "--device", "cpu"])
    assert done.exit_code == 0
    assert "bvFTD" in done.stdout.splitlines()[0]
    assert "not yet" in done.stdout
    assert sorted(prepared.parent.rglob("*")) == before


def test_a_plan_for_machines_is_json_with_a_cost_only_where_a_price_is_given(
    prepared: Path,
) -> None:
    words = ["train", str(prepared), "--plan", "--json", "--device", "cpu"]
    free = json.loads(CliRunner().invoke(app, words).stdout)
    paid = json.loads(CliRunner().invoke(app, [*words, "--price-per-hour", "2"]).stdout)
    assert {one["cost"] for one in free["families"]} == {None}
    assert None not in {one["cost"] for one in paid["families"]}


def test_training_without_a_place_for_the_result_is_a_usage_error(prepared: Path) -> None:
    done = CliRunner().invoke(app, ["train", str(prepared)])
    assert done.exit_code == 2
    assert "--plan" in done.output


def test_a_counterfactual_of_a_scan_that_is_not_there_is_an_input_error(
    prepared: Path, tmp_path: Path
) -> None:
    words = ["generate", str(prepared), str(tmp_path / "out"), "--from", "nobody"]
    done = CliRunner().invoke(app, [*words, "--diagnosis", "bvFTD"])
    assert isinstance(done.exception, InputError)
    assert not (tmp_path / "out").exists()
