"""The utility benchmark: its draws, what they are made of, and what is left of a refused batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from rarescan.configs.schema import RunConfig, dump_config, load_config, parse_config
from rarescan.errors import ChangedRecipeError, GateRefusedError, SettingError
from rarescan.files import Recipe, read_json, run_step, write_json
from rarescan.flows import records, utility_draw
from rarescan.flows.utility_draw import core_seconds, draw_folders

TINY = {
    "runs": "",
    "name": "tiny",
    "workers": 1,
    "train": {"gaussian": {}},
    "generate": {"n": 12},
    "utility": {
        "questions": {
            "few.curve": {
                "question": "few",
                "patients": [6],
                "arms": ["real", "strong", "strong+knowledge", "classical+gaussian", "oracle"],
            }
        },
        "knowledge": {"knowledge": {"how": {"persons": 12}}},
        "tuning_draws": 1,
        "judged_draws": 3,
        "controls": 20,
        "oracle_patients": 8,
        "test": 20,
        "classifier": {"steps": 10},
    },
}


def _config(root: Path) -> RunConfig:
    return parse_config({**TINY, "runs": str(root)})


def test_the_preset_asks_all_questions_and_fits_into_two_hours_of_two_cores() -> None:
    config = load_config("utility")
    asked = {one.question for one in config.utility.questions.values()}
    assert asked == {"few", "scanner", "confounded", "age", "none"}
    curve = {n for one in config.utility.questions.values() for n in one.patients}
    assert curve == {6, 12, 25, 50, 100}
    assert config.utility.tuning_draws == 4
    assert config.utility.judged_draws >= 12
    assert core_seconds(config) / 60 <= 2 * 120
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    assert draw_folders(config)


def test_draws_that_choose_come_first_and_others_are_never_looked_at(tmp_path: Path) -> None:
    names = [folder.name for folder in draw_folders(_config(tmp_path))]
    assert names == ["few.curve-6-0", "few.curve-6-100", "few.curve-6-101", "few.curve-6-102"]


def test_settings_without_a_question_or_with_an_unmade_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no question"):
        draw_folders(RunConfig())
    config = _config(tmp_path)
    with pytest.raises(SettingError, match="'gaussian', which nothing makes") as refused:
        draw_folders(replace(config, train={"gausian": config.train["gaussian"]}))
    assert "gausian" in refused.value.remedy
    with pytest.raises(SettingError, match="no arm 'strog'"):
        load_config("utility", ["utility.questions.few.arms=[strog]"])


def test_what_is_left_of_a_refused_batch_is_the_arm_without_it() -> None:
    def row(arm: str, model: str = "network", score: float = 0.0) -> dict[str, Any]:
        return {"arm": arm, "model": model, "score": score}

    rows = [
        row("real", score=1), row("real", "linear", 2), row("strong", score=3),
        row("strong&informed:map", score=4), row("informed:map", score=5),
    ]  # fmt: skip
    left = utility_draw._left_of(["strong+map", "strong+map:all"], rows, {"strong+map"})
    assert [(r["arm"], r["model"], r["score"]) for r in left] == [
        ("strong+map", "linear", 2),
        ("strong+map", "network", 3),
        ("strong+map&informed:map", "network", 4),
        ("strong+map:all", "network", 3),
        ("strong+map:all&informed:map", "network", 4),
    ]


@pytest.mark.long
def test_a_draw_keeps_figures_and_what_is_left_of_a_refused_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Path:
        raise GateRefusedError("They do not show the pattern.", remedy="Use another.")

    monkeypatch.setattr(utility_draw, "_write_known", refuse)
    monkeypatch.setattr(utility_draw, "_informed", lambda *_: [])
    config = _config(tmp_path)
    folder = utility_draw.utility_draw(config, draw_folders(config)[1])
    rows = {(r["arm"], r["model"]): r for r in read_json(folder / "result.json")}
    assert {path.name for path in folder.iterdir()} == {"recipe.json", "result.json"}
    assert set(rows) == {
        *((arm, "network") for arm in config.utility.questions["few.curve"].arms),
        *((arm, "linear") for arm in ("real", "strong+knowledge", "classical+gaussian", "oracle")),
    }
    left, base = rows["strong+knowledge", "network"], rows["strong", "network"]
    assert left["measures"] == base["measures"]
    assert (left["kind"], left["refused"], base["refused"]) == ("generative", True, False)
    assert {(r["question"], r["draw"], r["patients"]) for r in rows.values()} == {("few", 100, 6)}
    assert all(0 <= r["measures"]["auc"] <= 1 for r in rows.values())

    before = (folder / "result.json").stat().st_mtime_ns
    utility_draw.utility_draw(config, folder)
    assert (folder / "result.json").stat().st_mtime_ns == before
    changed = replace(config, utility=replace(config.utility, test=30))
    with pytest.raises(ChangedRecipeError, match=r"draw\.test"):
        utility_draw.utility_draw(changed, folder)


def _planted(folder: Path, number: int, gain: float) -> None:
    random = np.random.default_rng(number)
    luck = random.normal(0, 0.05)
    level = {"real": 0.7, "strong": 0.76, "strong+knowledge": 0.76 + gain, "oracle": 0.85}
    kinds = {"strong+knowledge": "generative", "oracle": "oracle"}

    def build(work: Path) -> None:
        rows = [
            {"question": "few", "draw": number, "patients": 6, "arm": arm, "model": "network"}
            | {"kind": kinds.get(arm, "free"), "refused": False}
            | {"measures": {"auc": value + luck + random.normal(0, 0.002)}}
            for arm, value in level.items()
        ]
        write_json(work / "result.json", rows)

    run_step(folder, Recipe(step="utility", schema=1, config={"gain": gain}), build)


@pytest.mark.parametrize(("gain", "verdict"), [(0.05, "use"), (-0.02, "do_not_use")])
def test_the_comparison_says_what_was_planted_and_tells_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float, verdict: str
) -> None:
    logged: list[Any] = []
    monkeypatch.setattr(records, "connect", lambda *_: type("R", (), {"log": logged.append}))
    config = _config(tmp_path)
    for folder in draw_folders(config):
        _planted(folder, int(folder.name.rpartition("-")[2]), gain)
    folder = utility_draw.utility(config, tmp_path / "tiny" / "utility")
    (entry,) = read_json(folder / "utility.json")["entries"]
    assert (entry["verdict"], entry["best_free"], entry["draws"]) == (verdict, "strong", 3)
    assert entry["arms"]["strong+knowledge"]["difference"]["value"] == pytest.approx(gain, abs=0.01)
    table = pd.read_parquet(folder / "results.parquet")
    assert len(table) == 16
    assert table.auc.between(0, 1).all()
    assert (folder / "utility.html").exists()
    (record,) = logged
    assert record.tags == {"few.6": verdict}
    assert any(name == "few.6.network.strong_knowledge.value" for name, _, _ in record.metrics)


def test_a_batch_of_knowledge_is_the_draws_own_and_the_free_arms_know_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def publish(path: Path, draw: Any, **how: Any) -> Path:
        seen.update(how, draw=draw)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"map")
        return path

    def write(cohort: Any, folder: Path, how: Any, seed: int) -> Path:
        seen.update(pattern=how.pattern, persons=how.persons, seed=seed)
        return folder

    monkeypatch.setattr("rarescan.phantom.published.write_published_map", publish)
    monkeypatch.setattr("rarescan.generative.knowledge.write_knowledge", write)
    monkeypatch.setattr(utility_draw, "open_cohort", lambda _: None)
    config = _config(tmp_path)
    asked = config.utility.questions["few.curve"]
    draw = utility_draw._draw(config, asked, 6, 101)
    cohort = tmp_path / "images" / "cohort"
    folder = cohort.parent / "batches" / "knowledge"
    assert utility_draw._write_known(config, draw, cohort, folder, 7) == folder
    assert Path(seen["pattern"]).read_bytes() == b"map"
    assert (seen["draw"].number, seen["likeness"], seen["seed"]) == (101, 1.0, 7)


@pytest.mark.long
@pytest.mark.prefect
def test_a_whole_benchmark_goes_through_prefect_and_is_not_done_twice(tmp_path: Path) -> None:
    from rarescan.flows.start import run_utility

    config = _config(tmp_path)
    config = replace(config, utility=replace(config.utility, tuning_draws=0, controls=40))
    folder = run_utility(config)
    entries = read_json(folder / "utility.json")["entries"]
    assert {(e["question"], e["patients"], e["draws"]) for e in entries} == {("few", 6, 3)}
    network = next(e for e in entries if e["model"] == "network")
    kinds = {arm: found["kind"] for arm, found in network["arms"].items() if "&" in arm}
    assert kinds == {
        "strong&informed:knowledge": "free",
        "strong+knowledge&informed:knowledge": "generative",
    }
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "tiny" / "draws").rglob("result.json")}
    assert run_utility(config) == folder
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not list((tmp_path / "tiny" / "draws").rglob("volumes.npy"))
