"""Cards say where a thing comes from, what it was chosen by, and what must not be left out."""

from dataclasses import asdict, replace

import pytest
import yaml

from rarescan.cohort.contracts import Cohort, Condition, Gate, Scan, Score, brain_grid
from rarescan.evaluation import cards

GRID = brain_grid(4)
FACTS = cards.ModelFacts(
    name="rarescan-generator",
    version="3",
    model_uri="models:/rarescan-generator/3",
    model_sha256="a" * 64,
    family="vae",
    trained_on="cohort-1",
    settings={"codec": "pca", "steps": 600},
    parameters=71448,
    training_seconds=20.0,
)


def person(index: int, origin: str = "real") -> Scan:
    sick = index % 3 == 0
    return Scan(
        scan_id=f"s{index}",
        person_id=f"P{index:03d}",
        origin=origin,
        licence="agreed with the ethics board",
        site="A" if index % 2 else "B",
        condition=Condition(
            diagnosis="bvFTD" if sick else "control",
            age_years=50.0 + index,
            sex="F" if index % 2 else "M",
        ),
    )


@pytest.fixture
def cohort(tmp_path) -> Cohort:
    scans = tuple(person(i) for i in range(30))
    parts = {s.person_id: ("train", "validation", "test")[i % 3] for i, s in enumerate(scans)}
    return Cohort(cohort_id="cohort-1", root=tmp_path, grid=GRID, scans=scans, partition=parts)


def decided(chosen="vae", verdict="register", **selection):
    """Return a decision and scores as plain values, as `select` stores them."""
    row = Score(
        name="mmd", value=0.0123, low=-0.004, high=0.028, n_real=29, n_synthetic=200,
        extractor="domain-train",
    )  # fmt: skip
    few = replace(row, name="fid", value=70.8, low=None, high=None, sufficient=False)
    gates = (
        Gate(name="spread", outcome="pass", statistic=0.1, limit=-0.2, reason="Varied."),
        Gate(name="copies", outcome="insufficient", reason="Blind to planted copies: flipped."),
    )
    ranked = {
        "rule": "Gates first.",
        "n_persons": 29,
        "heldout_uses": 2,
        "level": 0.025,
        "could_not_separate": ["gan", "vae"],
        "candidates": [
            {**asdict(row), "id": "vae", "in_set": True, "p_holm": None, "seconds_per_scan": 0.1},
            {**asdict(row), "id": "gan", "in_set": True, "p_holm": 0.4, "seconds_per_scan": None},
        ],
    }
    decision = {
        "decision_id": "d1",
        "verdict": verdict,
        "chosen": chosen,
        "permitted_use": "inside_controller",
        "gates": {chosen: [asdict(gate) for gate in gates]},
        "reasons": [("chosen", "vae is nearest to real persons (n = 29 persons).")],
        "scores": {chosen: [asdict(row), asdict(few)]},
        "selection": ranked | selection,
    }
    candidate = {
        "privacy": {"flagged": 0, "n": 200, "upper_bound": 0.0149},
        "regions": {"insula": dict.fromkeys(("real", "synthetic"), -1.0)},
        "condition_fidelity": {"by_diagnosis": {"bvFTD": asdict(replace(row, value=0.9))}},
    }
    candidate["regions"]["insula"] |= {"real_se": 0.2, "synthetic_se": 0.1}
    return decision, {"floor": {"mmd": asdict(row)}, "candidates": {chosen: candidate}}


@pytest.mark.parametrize(
    "sentence",
    [
        "n = 10 persons trained it, n = 10 persons chose it",
        "Reference: n = 29 persons",
        "FID and KID are shown for comparison and did not decide",
        "0 of 200 synthetic scans were flagged as copies; at most 1.49%",
        "could not be separated from candidate gan",
        "**insufficient**: copies. Blind to planted copies: flipped.",
        "used for 2 decisions; every test was made at 0.025",
        "inside the controller only",
        "| bvFTD | 10 | 0 | 0 |",
        "15 women, 15 men (n = 30 persons)",
        "50 to 79 years",
        "-1.00 (-1.39 to -0.61) | -1.00 (-1.20 to -0.80)",
    ],
)
def test_what_must_appear_stands_in_the_model_card(cohort, sentence):
    decision, scores = decided()
    assert sentence in cards.model_card(decision, scores, FACTS, cohort)


def test_every_number_of_the_table_has_its_persons_and_its_interval_or_says_none(cohort):
    decision, scores = decided()
    card = cards.model_card(decision, scores, FACTS, cohort)
    assert "| mmd | domain-train | 0.0123 | -0.004 to 0.028 | 29 | 200 | yes |" in card
    assert "| fid | domain-train | 70.8 | no interval | 29 | 200 | **no** |" in card
    assert "Floor" in card
    assert "0.0123 (-0.004 to 0.028), n = 29 and 200" in card


def test_the_head_is_yaml_that_a_model_hub_reads(cohort):
    decision, scores = decided()
    _, head, body = cards.model_card(decision, scores, FACTS, cohort).split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["model_name"] == "rarescan-generator"
    assert fields["permitted_use"] == "inside_controller"
    assert fields["n_persons"] == {"train": 10, "validation": 10, "test": 10}
    assert body.startswith("# rarescan-generator, version 3")


def test_no_card_names_a_person(cohort):
    decision, scores = decided()
    card = cards.model_card(decision, scores, FACTS, cohort)
    assert not [s.person_id for s in cohort.scans if s.person_id in card]


def test_a_confirmed_champion_of_an_earlier_cohort_does_not_claim_these_persons(cohort):
    decision, scores = decided(chosen="champion-2", verdict="keep_champion")
    facts = replace(FACTS, trained_on="cohort-0", settings={}, training_seconds=None)
    card = cards.model_card(decision, scores, facts, cohort)
    assert "10 persons trained it" not in card
    assert "trained on cohort `cohort-0`" in card
    assert "could not be separated from candidate" not in card


def test_a_model_of_phantoms_says_so_first(cohort):
    decision, scores = decided()
    phantoms = replace(cohort, scans=tuple(replace(s, origin="phantom") for s in cohort.scans))
    card = cards.model_card(decision, scores, FACTS, phantoms)
    assert "invented persons" in card.split("## Model details")[0]


BATCH = {
    "batch_id": "b1",
    "model_uri": "models:/rarescan-generator/3",
    "model_sha256": "a" * 64,
    "family": "vae",
    "seed": 7,
    "decision_id": "d1",
    "permitted_use": "inside_controller",
    "prepared_id": "cohort-1",
    "n": 30,
}


def test_a_datasheet_says_who_is_in_it_where_it_comes_from_and_what_is_forbidden():
    sheet = cards.datasheet(BATCH, [person(i, "synthetic") for i in range(30)], GRID)
    for sentence in (
        "30 synthetic persons",
        "derived from images of people: yes",
        "| bvFTD | 10 | 5 | 5 | 50 to 77 years |",
        "Seed: 7",
        "Filter: none.",
        "clinical decisions, test sets",
        "stays with the controller",
        "rarescan erase",
    ):
        assert sentence in sheet


def test_a_datasheet_says_how_many_scans_the_search_for_copies_replaced():
    search = {
        "drawn": 34, "replaced": 4, "upper_bound": 0.25, "blind_to": ["flipped"], "n_validation": 21
    }  # fmt: skip
    sheet = cards.datasheet({**BATCH, "copies": search}, [person(0, "synthetic")], GRID)
    assert "4 of 34 (11.8%) were flagged and drawn again" in sheet
    assert "**insufficient**: the search is blind to flipped." in sheet
    released = cards.datasheet(
        {**BATCH, "permitted_use": "release"}, [person(0, "synthetic")], GRID
    )
    assert "may leave the controller" in released


def test_a_statement_of_the_search_goes_before_our_own_words():
    assert cards.privacy_sentence(None) == "Copies of training persons were not searched for."
    said = {"statement": "0 of 5 flagged.", "flagged": 1, "n": 5}
    assert cards.privacy_sentence(said) == "0 of 5 flagged."
    assert cards.privacy_sentence({"flagged": 2, "n": 5}).endswith("copies.")
