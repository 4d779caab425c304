"""The whole scoring on small brains: files, numbers, gates, bad input."""

import hashlib
import json
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from rarescan.cohort.contracts import Condition, Gate, Question, Scan, Score, brain_grid
from rarescan.cohort.store import create_volumes, write_cohort
from rarescan.errors import GridMismatchError, InputError, SettingError
from rarescan.evaluation import decide, evaluate, features, people
from rarescan.evaluation.spec import EvaluateConfig, ExtractorConfig
from rarescan.files import Recipe, write_json

GRID = brain_grid(8)
CONFIG = EvaluateConfig(seed=3, canary_persons=15)
N = {"train": 48, "validation": 24, "test": 4}


def scans(n, origin, *, first=0, every=3):
    """Return scans of n persons, each third a patient; the first person of many has two."""
    return [
        Scan(
            scan_id=f"{origin}-{first + i}",
            person_id=f"{'SYN' if origin == 'synthetic' else 'P'}{first + i:03d}",
            origin=origin,
            condition=Condition(
                diagnosis="bvFTD" if i % every == 0 else "control", age_years=50.0 + i % 30
            ),
        )
        for i in range(n)
    ]


def fill(root, records, volumes, partition=None, grid=GRID):
    create_volumes(root, len(records), grid)[:] = volumes
    write_cohort(root, scans=records, grid=grid, partition=partition or {})
    return root


def draw_people(brains, records, seed):
    sick = np.array([s.condition.diagnosis == "bvFTD" for s in records])
    volumes = np.empty((len(records), *GRID.shape), np.float32)
    volumes[sick] = brains(int(sick.sum()), seed, atrophy=0.6)
    volumes[~sick] = brains(int((~sick).sum()), seed + 1)
    return volumes


class Network:
    """A judge that looks at the frontal lobes: eight block means and a slope."""

    weights_sha256 = "f" * 64

    def __init__(self, healthy, ill):
        self.centre = self._look(healthy).mean(axis=0)
        self.slope = self._look(ill).mean(axis=0) - self.centre

    def _look(self, volumes):
        blocks = volumes[:, :20, :24, :20].reshape(len(volumes), 4, 5, 4, 6, 4, 5)
        return blocks.mean(axis=(2, 4, 6)).reshape(len(volumes), -1)[:, 5:29]

    def embed(self, volumes):
        seen = self._look(volumes) - self.centre
        z = 12 * (seen @ self.slope / (self.slope @ self.slope) - 0.5)
        p = 1 / (1 + np.exp(-z))
        return seen.astype(np.float32), np.column_stack([1 - p, p]).astype(np.float32)


@pytest.fixture(scope="module")
def stage(brains, tmp_path_factory):
    """Return a prepared cohort, four candidates and a judge."""
    root = tmp_path_factory.mktemp("evaluation")
    records = scans(sum(N.values()), "phantom")
    parts = np.repeat(list(N), list(N.values()))
    partition = dict(zip((s.person_id for s in records), map(str, parts), strict=True))
    volumes = draw_people(brains, records, 1)
    # One validation person came twice.
    again = replace(records[60], scan_id="again", session="02")
    records, volumes = [*records, again], np.concatenate([volumes, volumes[60:61]])
    prepared = fill(root / "prepared", records, volumes, partition)
    recipe = Recipe(step="prepare", schema=1)
    write_json(prepared / "recipe.json", {"id": recipe.id, **recipe.as_dict()})
    made = scans(60, "synthetic")
    honest = draw_people(brains, made, 11)
    mean = honest.mean(axis=0)
    narrow = ((mean + 0.3 * (honest - mean)) * (honest > 0)).astype(np.float32)
    wrong = [
        replace(s, condition=replace(s.condition, diagnosis=d))
        for s, d in zip(made, ["control", "bvFTD"] * 30, strict=True)
    ]
    samples = {
        "diffusion": fill(root / "honest", made, honest),
        "vae": fill(root / "narrow", made, narrow),
        "transfer": fill(root / "copies", made, np.concatenate([volumes[:48], honest[48:]])),
        "gan": fill(root / "wrong", wrong, honest),
    }
    return prepared, samples, Network(volumes[1:48:3], volumes[0:48:3])


@pytest.fixture(scope="module")
def work(stage, tmp_path_factory):
    prepared, samples, network = stage
    folder = tmp_path_factory.mktemp("work")
    evaluate.write_scores(folder, prepared, samples, network.embed, CONFIG, Question())
    return folder


@pytest.fixture(scope="module")
def scores(work):
    return decide.read_scores(work)


def test_scores_are_plain_json_of_the_contracts(work, scores):
    text = (work / "scores.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    for candidate in scores["candidates"].values():
        for rows in candidate["scores"].values():
            for name, row in rows.items():
                assert asdict(Score(**row)) == row
                assert row["name"] == name
        names = [Gate(**gate).name for gate in candidate["gates"]]
        quality, privacy = ["spread", "high_frequency", "copies", "plausibility"], names[4:]
        assert names[:4] == quality
        assert privacy == ["data", "batch", "membership"]
    assert scores["extractors"]["primary"] == "domain-train"
    assert scores["extractors"]["weights_sha256"]["domain-train"] == "f" * 64
    assert scores["candidates"]["vae"]["scores"]["domain-train"]["mmd"]["extractor"] == (
        "domain-train"
    )


def test_the_sharpness_gates_power_against_blur_grows_with_the_blur(scores):
    for candidate in scores["candidates"].values():
        told = candidate["high_frequency"]["power_at_blur"]
        assert [row["sd_voxels"] for row in told] == [0.3, 0.5, 0.8]
        powers = [row["power"] for row in told]
        assert powers == sorted(powers)
        assert powers[-1] > 0.9


def test_every_set_has_one_vector_a_person(work):
    found = features.read_features(work)
    assert set(found) == {"domain-train", "regions"}
    for sets in found.values():
        assert set(sets) == {"train", "validation", "diffusion", "vae", "transfer", "gan"}
        assert len(sets["train"].values) == 48
        # 25 validation scans of 24 persons.
        assert len(sets["validation"].values) == 24
    regions = found["regions"]["train"].values
    assert regions.mean(axis=0) == pytest.approx(np.zeros(regions.shape[1]), abs=1e-4)


def test_the_numbers_tell_the_candidates_apart(scores):
    candidates = scores["candidates"]

    def mmd(name):
        return candidates[name]["scores"]["domain-train"]["mmd"]

    assert mmd("diffusion")["low"] < 0.02
    assert mmd("vae")["low"] > mmd("diffusion")["high"]
    assert mmd("diffusion")["n_real"] == 24
    assert candidates["vae"]["spread"]["outcome"] == "fail"
    assert candidates["diffusion"]["spread"]["outcome"] != "fail"
    assert scores["network"]["accuracy"]["value"] > 0.9
    assert scores["network"]["accuracy"]["n_real"] == 24
    assert candidates["diffusion"]["condition_fidelity"]["agreement"]["value"] > 0.9
    assert candidates["gan"]["condition_fidelity"]["agreement"]["value"] < 0.7
    assert candidates["diffusion"]["regions"]["frontal_left"]["synthetic"] < -0.5
    assert not scores["floor"]["fid"]["sufficient"]
    assert scores["floor"]["fid"]["n_synthetic"] == 24


def test_each_diagnosis_has_its_own_distances_and_floor(scores):
    found = scores["candidates"]["gan"]["by_diagnosis"]
    assert set(found) == {"bvFTD", "control"}
    assert (found["bvFTD"]["n_real"], found["bvFTD"]["n_synthetic"]) == (8, 30)
    assert (found["control"]["n_real"], found["control"]["n_synthetic"]) == (16, 30)
    mmd = found["bvFTD"]["scores"]["mmd"]
    assert not mmd["sufficient"]  # eight persons
    # Half of those asked to be ill are controls, and the other way round.
    honest = scores["candidates"]["diffusion"]["by_diagnosis"]["bvFTD"]["scores"]["mmd"]
    assert mmd["value"] > 3 * max(honest["value"], 0.01)
    floor = found["bvFTD"]["floor"]
    assert set(floor) == {"mmd", "kid", "fid", "fid_jackknife"}
    # As many training persons as there are, or synthetic persons in the smallest candidate.
    assert floor["mmd"]["n_synthetic"] == 16
    assert floor["fid"]["n_real"] == found["bvFTD"]["scores"]["fid"]["n_real"] == 8


def test_variety_stands_beside_that_of_real_persons(scores):
    varied = {name: c["diversity"] for name, c in scores["candidates"].items()}
    assert varied["vae"]["ms_ssim"]["low"] > varied["vae"]["ms_ssim_real"]["high"]
    assert varied["diffusion"]["ms_ssim"]["low"] < varied["diffusion"]["ms_ssim_real"]["high"]
    assert varied["vae"]["vendi_ratio"]["value"] < 0.7 * varied["diffusion"]["vendi_ratio"]["value"]
    # 48 training and 24 validation persons give 36 pairs, 60 synthetic persons 30.
    assert varied["vae"]["ms_ssim_real"]["n_real"] == 72
    assert varied["vae"]["ms_ssim"]["n_synthetic"] == 60
    assert scores["informative"] == {"is": False}
    for extractor in scores["candidates"]["vae"]["scores"].values():
        assert extractor.get("is", {}).get("better", "neither") == "neither"


def test_copies_are_counted_and_their_donors_named(scores):
    privacy = scores["candidates"]["transfer"]["privacy"]
    assert 45 <= privacy["flagged"] <= 48
    assert privacy["outcome"] == "fail"
    assert all(
        row["person_id"] == f"P{row['index']:03d}" and row["flagged"] for row in privacy["nearest"]
    )
    assert scores["candidates"]["diffusion"]["privacy"]["flagged"] == 0
    assert set(privacy["canary_power"]) >= {"exact", "flipped", "shifted", "intensity"}


def test_the_decision_reads_what_was_written(work, scores):
    decision = decide.decide(scores, {}, features.read_features(work))
    assert decision.chosen != "transfer"
    assert "fails the gate copies" in " ".join(text for _code, text in decision.reasons)
    assert len(decision.scores["diffusion"]) == 17


@pytest.mark.long
def test_the_same_again_in_pieces_and_several_processes_gives_the_same_bytes(
    stage, work, tmp_path, monkeypatch
):
    monkeypatch.setattr(people, "_WORTH_PROCESSES_BYTES", 0)
    monkeypatch.setattr(people, "_PIECE", 17)
    prepared, samples, network = stage
    chosen = {"diffusion": samples["diffusion"]}
    evaluate.write_scores(tmp_path, prepared, chosen, network.embed, CONFIG, Question())
    again = json.loads((tmp_path / "scores.json").read_text())
    first = json.loads((work / "scores.json").read_text())
    assert again["candidates"]["diffusion"] == first["candidates"]["diffusion"]
    for path in tmp_path.rglob("*.npz"):
        assert path.read_bytes() == (work / path.relative_to(tmp_path)).read_bytes()


def test_what_cannot_be_scored_is_refused_with_a_remedy(stage, tmp_path):
    prepared, samples, network = stage
    good = samples["diffusion"]

    def attempt(candidates, embed=network.embed):
        evaluate.write_scores(tmp_path, prepared, candidates, embed, CONFIG, Question())

    with pytest.raises(InputError, match="no candidate"):
        attempt({})
    with pytest.raises(InputError, match="called 'train'"):
        attempt({"train": good})
    with pytest.raises(InputError, match="'gan' are missing"):
        attempt({"gan": tmp_path / "nowhere"})
    few = fill(tmp_path / "few", scans(1, "synthetic"), np.zeros((1, *GRID.shape), np.float32))
    with pytest.raises(InputError, match=r"'gan' has volumes of the shape \(1, 20, 24, 20\) for 1"):
        attempt({"gan": few})
    other = brain_grid(4)
    foreign = fill(tmp_path / "grid", scans(2, "synthetic"), 0.5, grid=other)
    with pytest.raises(GridMismatchError, match="'gan' lies on 40 x 48 x 40 voxels of 4 mm"):
        attempt({"gan": foreign})
    moved = fill(tmp_path / "moved", scans(2, "synthetic"), 0.5, grid=replace(GRID, spacing_mm=7.0))
    with pytest.raises(GridMismatchError, match="of 7 mm, the cohort on"):
        attempt({"gan": moved})

    def broken(volumes):
        seen, chances = network.embed(volumes)
        return np.full_like(seen, np.nan), chances

    with pytest.raises(InputError, match="'real' hold NaN"):
        attempt({"gan": good}, broken)
    assert not (tmp_path / "scores.json").exists()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Return the settings of a network of others that averages quarters of a volume."""
    path = tmp_path_factory.mktemp("theirs") / "pool.pt"
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool3d(4), torch.nn.Flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(pool, torch.zeros(1, 1, *GRID.shape)), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return ExtractorConfig(name="theirs", kind="torchscript-3d", path=str(path), sha256=sha256)


def test_networks_of_others_are_scored_beside_ours_and_kept(stage, theirs, tmp_path, monkeypatch):
    prepared, samples, network = stage
    config = replace(CONFIG, extractors=(theirs,))
    made = np.load(samples["vae"] / "rarescan" / "volumes.npy")[:20]
    chosen = {"vae": fill(tmp_path / "few", scans(20, "synthetic"), made)}
    evaluate.write_scores(tmp_path / "done", prepared, chosen, network.embed, config, Question())
    scores = decide.read_scores(tmp_path / "done")
    row = scores["candidates"]["vae"]["scores"]["theirs"]["mmd"]
    assert (row["extractor"], row["n_real"], row["n_synthetic"]) == ("theirs", 24, 20)
    assert row["low"] > 0
    assert scores["extractors"]["weights_sha256"]["theirs"] == theirs.sha256
    found = features.read_features(tmp_path / "done")
    blocks = made[0].reshape(4, 5, 4, 6, 4, 5).mean(axis=(1, 3, 5)).ravel()
    assert found["theirs"]["vae"].values[0] == pytest.approx(blocks, abs=1e-5)
    decide.decide(scores, {}, found)
    # 48 training persons would make the floor of a FID another one than that of 20.
    assert scores["floor"]["mmd"]["n_synthetic"] == 20
    assert scores["floor"]["fid"]["n_real"] == 20
    # The result that takes its place looks at no image again.
    monkeypatch.setattr(people, "_opened", None)
    again = tmp_path / ".done.unfinished"
    evaluate.write_scores(again, prepared, chosen, network.embed, config, Question())
    assert (again / "scores.json").read_bytes() == (tmp_path / "done" / "scores.json").read_bytes()


def test_a_changed_file_of_weights_is_told_before_anything_is_looked_at(stage, theirs, tmp_path):
    prepared, samples, _network = stage
    wrong = replace(CONFIG, extractors=(replace(theirs, sha256="0" * 64),))
    with pytest.raises(SettingError, match="'theirs' have the SHA-256"):
        evaluate.write_scores(tmp_path, prepared, samples, None, wrong, Question())
