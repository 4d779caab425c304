import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from rarescan.configs.schema import RunConfig, json_schema, parse_config, plain_config
from rarescan.errors import InputError, SettingError
from rarescan.files import Recipe, run_step
from rarescan.flows.lineage import trace_back
from rarescan.flows.plan import (
    Places,
    finished_report,
    hide_paths,
    mark_finished,
    show_paths,
    source_of,
    with_phantom_tables,
)


@pytest.fixture
def finished(tmp_path: Path) -> RunConfig:
    """Return the settings of a run whose folders and report are there."""
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "a.dcm").write_text("1")
    config = parse_config(
        {
            "runs": str(tmp_path / "runs"),
            "source": {"kind": "dicom", "path": str(tmp_path / "export")},
        }
    )
    places = Places(config.root)
    write_chain(places)
    places.report.write_text("<html>")
    mark_finished(config, [places.cohort, places.prepared])
    return config


def write_chain(places: Places) -> None:
    first = Recipe(step="ingest", schema=1)
    run_step(places.cohort, first, lambda work: (work / "file").write_text("") and None)
    second = Recipe(
        step="prepare", schema=1, inputs={"cohort": first.id}, found_at={"cohort": "../cohort"}
    )
    run_step(places.prepared, second, lambda work: (work / "file").write_text("") and None)


def test_a_complete_run_is_found_by_its_settings_and_source(finished: RunConfig) -> None:
    assert finished_report(finished) == finished.root / "report.html"


def test_a_changed_setting_a_grown_export_or_a_lost_folder_is_noticed(
    finished: RunConfig, tmp_path: Path
) -> None:
    changed = parse_config(
        {
            "runs": str(tmp_path / "runs"),
            "workers": 1,
            "source": {"kind": "dicom", "path": str(tmp_path / "export")},
        }
    )
    assert finished_report(changed) is None
    (tmp_path / "export" / "b.dcm").write_text("2")
    assert finished_report(finished) is None
    (tmp_path / "export" / "b.dcm").unlink()
    (finished.root / "prepared" / "recipe.json").unlink()
    assert finished_report(finished) is None


def test_a_source_without_or_with_a_wrong_path_is_an_error() -> None:
    with pytest.raises(SettingError, match="has no path"):
        source_of(parse_config({"source": {"kind": "bids"}}))
    with pytest.raises(SettingError, match="There is no /nowhere"):
        source_of(parse_config({"source": {"kind": "dicom", "path": "/nowhere"}}))


def test_a_phantom_brings_its_labels_and_key_unless_others_are_named() -> None:
    plain = with_phantom_tables(parse_config({"name": "demo"}))
    assert plain["ingest"]["labels"] == "runs/demo/phantom/labels.csv"
    own = with_phantom_tables(parse_config({"ingest": {"key_file": "mine.key"}}))
    assert own["ingest"]["key_file"] == "mine.key"


def test_a_file_is_traced_back_through_the_recipes(finished: RunConfig) -> None:
    chain = trace_back(finished.root / "prepared" / "file")
    assert [(link["depth"], link["step"]) for link in chain] == [(0, "prepare"), (1, "ingest")]


def test_a_lost_input_is_reported_as_missing(finished: RunConfig) -> None:
    (finished.root / "cohort" / "recipe.json").unlink()
    assert trace_back(finished.root / "prepared")[-1]["step"] == "missing"


def test_a_foreign_file_cannot_be_traced(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("")
    with pytest.raises(InputError, match="does not lie in a folder that rarescan wrote"):
        trace_back(tmp_path / "letter.txt")
    with pytest.raises(InputError, match="There is no"):
        trace_back(tmp_path / "nothing")


NAMES_A_PLACE = re.compile(
    r"\b(files?|folders?|archives?|csv|tsv|url|uri|paths?|directory|program|server|https?|form|weights)\b",
    re.IGNORECASE,
)
"""What the description of a setting says, or the parts of its name, where it holds a place."""
NO_PLACES = {"columns", "licence", "name", "own_ae_title", "sha256", "weights_sha256"}
"""Settings that speak of a file, a folder or a table and hold none."""


def texts(
    node: dict[str, Any], defs: dict[str, Any], key: str = "", told: str = ""
) -> Iterator[tuple[str, str]]:
    """Yield name and description of every setting that may be any text."""
    told = node.get("description", told)
    if "$ref" in node:
        node = defs[node["$ref"].rsplit("/", 1)[-1]]
    if node.get("type") == "string" and not {"enum", "const"} & node.keys():
        yield key, told
    for name, inner in node.get("properties", {}).items():
        yield from texts(inner, defs, name, "")
    inside = [node.get("items"), node.get("additionalProperties"), *node.get("anyOf", ())]
    for inner in [one for one in inside if isinstance(one, dict)]:
        yield from texts(inner, defs, key, told)


def test_every_setting_that_holds_a_path_or_an_address_is_hidden_from_prefect() -> None:
    schema = json_schema()
    places = {
        key
        for key, told in texts(schema, schema["$defs"])
        if NAMES_A_PLACE.search(f"{key.replace('_', ' ')} {told}")
    } - NO_PLACES
    assert {"path", "codec_weights", "checkpoints", "weights", "tracking_uri", "runs"} <= places
    shown = {key for key in places if not isinstance(hide_paths({key: "x"})[key], SecretStr)}
    assert not shown, f"add to flows.plan._PATHS, or to NO_PLACES here: {shown}"


def test_hidden_settings_say_nothing_and_come_back_whole() -> None:
    name = "DOE^JANE"
    extractor = {"name": "x", "kind": "inception", "path": name, "sha256": "0" * 64}
    places = ("codec_weights", "init_from", "checkpoints")
    config = parse_config(
        {
            "runs": name,
            "train": {"diffusion": dict.fromkeys(places, name)},
            "evaluate": {"extractors": [extractor]},
            "retrain": {"classifier": {"weights": name, "weights_sha256": "0" * 64}},
            "prepare": {"strip_command": [name, "{in}", "{out}"]},
            "push": {"targets": {"archive": {"address": f"https://{name}@host/dicom-web"}}},
            "registry": {"tracking_uri": f"http://user:{name}@host"},
        }
    )
    hidden = hide_paths(plain_config(config))
    assert name in json.dumps(plain_config(config))
    assert name not in repr(hidden)
    assert show_paths(hidden) == plain_config(config)
