"""No number enters the registry without what is needed to read it."""

from dataclasses import replace

import pytest

from rarescan.cohort.contracts import Score
from rarescan.errors import InputError
from rarescan.registry.scores import score_metrics

EXTRACTORS = {"primary": "domain-train", "weights_sha256": {"domain-train": "ab12"}}
FLOOR = {"mmd": {"value": 0.001}}
MMD = Score(
    name="mmd",
    value=0.02,
    low=0.01,
    high=0.03,
    n_real=29,
    n_synthetic=200,
    extractor="domain-train",
)


def test_a_score_brings_its_interval_its_persons_and_its_floor():
    assert score_metrics([MMD], EXTRACTORS, FLOOR) == [
        ("domain-train.mmd", 0.02, 0),
        ("domain-train.mmd.low", 0.01, 0),
        ("domain-train.mmd.high", 0.03, 0),
        ("domain-train.mmd.n_real", 29.0, 0),
        ("domain-train.mmd.n_synthetic", 200.0, 0),
        ("domain-train.mmd.floor", 0.001, 0),
    ]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"n_real": 0}, "number of persons"),
        ({"n_synthetic": 0}, "number of persons"),
        ({"low": None, "high": None}, "interval"),
        ({"extractor": ""}, "features"),
    ],
)
def test_a_score_that_nobody_can_read_is_refused(change, word):
    with pytest.raises(InputError, match=word):
        score_metrics([replace(MMD, **change)], EXTRACTORS, FLOOR)


@pytest.mark.parametrize(
    ("extractors", "floor", "word"),
    [
        (EXTRACTORS, {}, "real and real"),
        ({**EXTRACTORS, "weights_sha256": {"domain-train": ""}}, FLOOR, "hash"),
    ],
)
def test_the_distance_that_decides_needs_its_floor_and_its_network(extractors, floor, word):
    with pytest.raises(InputError, match=word):
        score_metrics([MMD], extractors, floor)


def test_a_score_that_is_marked_as_unreadable_may_lack_an_interval():
    inception = replace(
        MMD, name="is", low=None, high=None, sufficient=False, better="neither", n_real=0
    )

    names = [name for name, _, _ in score_metrics([inception], EXTRACTORS, FLOOR)]

    assert names == ["domain-train.is", "domain-train.is.n_synthetic"]
