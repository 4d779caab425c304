"""What the steps wrote comes back from `collect` as it was, and nothing else does."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rarescan.errors import InputError
from rarescan.evaluation.collect import collect
from rarescan.evaluation.page import in_words, words
from rarescan.files import read_json, read_recipe, write_json

STAGES = ("prepare", "evaluate", "refuse", "select", "generate", "retrain")


@pytest.fixture(scope="module")
def content(whole_run: Path) -> dict[str, Any]:
    return collect(whole_run)


def test_persons_are_counted_per_diagnosis_and_part(content: dict[str, Any]) -> None:
    # 40 persons; every third is a patient, of five the fourth validates and the fifth tests.
    persons = content["cohort"]["persons"]
    assert persons["bvFTD"] == {"train": 8, "validation": 3, "test": 3, "total": 14}
    assert persons["control"] == {"train": 16, "validation": 5, "test": 5, "total": 26}
    assert list(persons) == ["bvFTD", "control"], "the rare diagnosis comes first"


def test_rejects_carry_their_code_count_files_and_plain_words(content: dict[str, Any]) -> None:
    rejects = content["cohort"]["rejects"]
    assert {code: (r["count"], r["files"], r["action"]) for code, r in rejects.items()} == {
        "LOCALIZER": (2, 6, "drop"),
        "NOT_HEAD": (1, 0, "quarantine"),
        "TRUNC_PIXELS": (1, 110, "quar"),
    }
    assert rejects["NOT_HEAD"]["meaning"] == "shows no head"
    assert rejects["LOCALIZER"]["meaning"] == "localizer", "no words stand in that cohort"
    assert list(content["cohort"]["repairs"]) == ["PREAMBLE_DATA"]


def test_persons_whose_scans_were_all_rejected_count_as_come_in(content: dict[str, Any]) -> None:
    assert (content["cohort"]["n_persons_in"], content["cohort"]["n_persons"]) == (42, 40)


def test_scores_equal_what_evaluate_wrote(whole_run: Path, content: dict[str, Any]) -> None:
    scores = read_json(whole_run / "evaluation" / "scores.json")
    for family, stored in scores["candidates"].items():
        for measure in ("mmd", "kid", "fid", "is", "recall"):
            expected = stored["scores"]["domain-train"][measure]
            assert content["candidates"][family][measure] == expected
            assert expected["extractor"] == "domain-train"
    assert content["floor"] == scores["floor"]


def test_arms_gain_and_batch_equal_what_their_steps_wrote(
    whole_run: Path, content: dict[str, Any]
) -> None:
    gain = read_json(whole_run / "classifiers" / "gain.json")
    assert content["arms"] == gain["arms"]
    assert list(content["arms"]) == [
        "real",
        "oversampled",
        "classical",
        "classical_synthetic",
        "placebo",
    ]
    assert (content["gain"], content["linear"]) == (gain["gain"], gain["linear"])
    stored = read_json(whole_run / "synthetic" / "batch.json")
    assert content["batch"] == {**stored, "seconds": content["seconds"].get("generate")}


def test_what_is_said_of_the_champion_is_its_own_with_real_persons_beside_it(
    content: dict[str, Any],
) -> None:
    assert content["champion"]["family"] == "vae"
    assert content["spread"]["outcome"] == "pass"
    assert content["privacy"]["flagged"] == 0
    assert content["condition_fidelity"]["agreement"]["value"] == 0.9
    assert content["condition_fidelity"]["real_accuracy"]["value"] == 0.93


def test_lineage_names_every_step_by_the_id_of_its_recipe(
    whole_run: Path, content: dict[str, Any]
) -> None:
    chain = {step["folder"]: step for step in content["lineage"]}
    assert list(chain) == [
        "prepared",
        "models/diffusion",
        "models/gan",
        "models/vae",
        "evaluation",
        "decision",
        "synthetic",
        "classifiers",
    ]
    for folder, step in chain.items():
        recipe = read_recipe(whole_run / folder)
        assert recipe is not None
        assert (step["id"], step["inputs"]) == (recipe.id, recipe.inputs)


def test_seconds_stand_in_the_order_of_the_way_and_memory_is_the_largest(
    content: dict[str, Any],
) -> None:
    assert list(content["seconds"].items()) == [
        ("ingest", 30.5),
        ("prepare", 61.0),
        ("train-vae", 80.0),
    ]
    assert content["peak_memory_mb"] == 180.0


def test_notes_about_the_whole_run_are_no_steps(make_run: Callable[..., Path]) -> None:
    run = make_run(until="prepare", n_persons=5)
    write_json(run / "recipes" / "memory.json", {"peak_memory_mb": 512.0})
    write_json(run / "recipes" / "run.json", {"id": "i", "folders": {}})
    content = collect(run)
    assert list(content["seconds"]) == ["ingest", "prepare", "train-vae"]
    assert content["peak_memory_mb"] == 512.0


@pytest.mark.parametrize(
    ("until", "verdict", "code", "begins"),
    [
        ("retrain", "use", "use", "Synthetic scans helped"),
        ("retrain", "undecided", "undecided", "No evidence that synthetic scans help this"),
        ("retrain", "do_not_use", "do_not_use", "No evidence that synthetic scans help this"),
        ("retrain", "worse", "do_not_use", "Synthetic scans made this classifier worse"),
        ("refuse", "", "refused", "No generator was good enough"),
        ("generate", "", "not_retrained", "Synthetic scans were made; whether they help"),
        ("select", "", "not_generated", "A generator was chosen"),
        ("evaluate", "", "not_decided", "The candidates were scored"),
        ("prepare", "", "not_evaluated", "The cohort is ready"),
    ],
)
def test_the_verdict_says_how_far_the_run_came_and_what_it_found(
    make_run: Callable[..., Path], until: str, verdict: str, code: str, begins: str
) -> None:
    found = collect(make_run(until=until, verdict=verdict, n_persons=5))["verdict"]
    assert found["code"] == code
    assert found["sentence"].startswith(begins)
    assert found["meaning"]
    assert found["next"]


def test_every_run_has_the_same_keys_and_null_for_what_it_lacks(
    make_run: Callable[..., Path], content: dict[str, Any]
) -> None:
    later = ("champion", "batch", "arms", "gain", "decision", "condition_fidelity", "spread")
    bare = collect(make_run(until="prepare", n_persons=5))
    assert bare.keys() == content.keys()
    assert [bare[key] for key in later] == [None] * len(later)
    refused = collect(make_run("refused", until="refuse", n_persons=5))
    assert (refused["champion"], refused["batch"], refused["privacy"]) == (None, None, None)
    assert refused["candidates"]["vae"]["mmd"]["value"] == 0.031


def test_a_retrained_run_without_a_synthetic_arm_has_no_verdict_on_gain(
    make_run: Callable[..., Path],
) -> None:
    run = make_run(until="refuse", n_persons=5)
    arm = {"auc": {"value": 0.7, "low": 0.5, "high": 0.9}}
    write_json(run / "classifiers" / "gain.json", {"arms": {"real": arm}, "gain": None})
    found = collect(run)
    assert found["verdict"]["code"] == "refused"
    assert found["arms"]["real"]["auc"]["value"] == 0.7


def test_values_that_json_does_not_know_become_null(make_run: Callable[..., Path]) -> None:
    run = make_run(until="evaluate", n_persons=5)
    path = run / "evaluation" / "scores.json"
    scores = read_json(path)
    mmd = scores["candidates"]["gan"]["scores"]["domain-train"]["mmd"]
    mmd |= {"low": -math.inf, "high": math.nan}
    path.write_text(json.dumps(scores))
    content = collect(run)
    assert content["candidates"]["gan"]["mmd"]["low"] is None
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_no_pseudonym_site_or_free_text_gets_out(whole_run: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content)
    assert "P0003" in (whole_run / "evaluation" / "scores.json").read_text()
    for hidden in ("P00", "Q00", "site0", str(whole_run.parent)):
        assert hidden not in text
    assert content["cohort"]["sources"]["counts"] == {"n_files": 3210}
    assert content["cohort"]["sources"]["n_sites"] == 2


def test_gates_of_the_decision_win_over_those_of_the_evaluation(
    make_run: Callable[..., Path],
) -> None:
    run = make_run(until="select", n_persons=5)
    path = run / "decision" / "decision.json"
    added = {"name": "data", "outcome": "pass", "statistic": None, "limit": None, "reason": ""}
    write_json(path, read_json(path) | {"gates": {"gan": [added]}})
    candidates = collect(run)["candidates"]
    assert [gate["name"] for gate in candidates["gan"]["gates"]] == ["data"]
    assert [gate["name"] for gate in candidates["vae"]["gates"]] == ["spread", "copies"]


def test_curves_become_one_series_for_each_loss(make_run: Callable[..., Path]) -> None:
    run = make_run(until="evaluate", n_persons=5)
    points = [
        {"step": 1, "critic": 0.5, "generator": 2.0, "validation": None, "seconds": 0.1},
        {"step": 2, "critic": 0.4, "generator": 1.5, "validation": 3.0, "seconds": 0.2},
    ]
    write_json(run / "models" / "gan" / "training.json", {"curve": points, "seconds": 0.2})
    training = collect(run)["candidates"]["gan"]["training"]
    assert training["curves"] == {
        "critic": [[1, 0.5], [2, 0.4]],
        "generator": [[1, 2.0], [2, 1.5]],
        "validation": [[2, 3.0]],
    }


def test_a_family_that_was_trained_but_not_scored_is_listed_without_scores(
    make_run: Callable[..., Path],
) -> None:
    run = make_run(until="evaluate", n_persons=5)
    write_json(run / "models" / "late" / "training.json", {"curve": [], "seconds": 1.0})
    late = collect(run)["candidates"]["late"]
    assert late["mmd"] is None
    assert late["training"] == {
        "seconds": 1.0,
        "parameters": None,
        "network_kept": None,
        "recoveries": 0,
        "curves": {},
    }


def test_a_native_cohort_without_partition_counts_as_not_assigned(
    make_run: Callable[..., Path],
) -> None:
    run = make_run(until="prepare", n_persons=5)
    shutil.rmtree(run / "cohort")
    (run / "prepared").rename(run / "cohort")
    tables = run / "cohort" / "rarescan" / "cohort.json"
    write_json(tables, read_json(tables) | {"partition": {}, "grid": None})
    cohort = collect(run)["cohort"]
    assert cohort["persons"]["bvFTD"]["unassigned"] == 2
    assert cohort["persons"]["bvFTD"]["train"] == 0
    assert cohort["spacing_mm"] is None


def test_a_folder_without_cohort_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no cohort") as caught:
        collect(tmp_path)
    assert "rarescan run" in caught.value.remedy


def test_a_damaged_file_is_named_with_the_way_out(make_run: Callable[..., Path]) -> None:
    run = make_run(until="evaluate", n_persons=5)
    (run / "evaluation" / "scores.json").write_text('{"extractors": ')
    with pytest.raises(InputError, match=r"evaluation/scores\.json is no valid JSON") as caught:
        collect(run)
    assert str(run) not in str(caught.value)


def test_codes_without_words_are_shown_spaced_and_suffixes_are_ignored() -> None:
    assert in_words("SOME_NEW_ARM", "arms") == "SOME NEW ARM"
    assert in_words("placebo:second", "arms") == words()["arms"]["placebo"]
