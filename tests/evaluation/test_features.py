"""Feature sets: one vector a person, stored and read back unchanged."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from rarescan.cohort.contracts import FeatureSet, brain_grid
from rarescan.errors import InputError
from rarescan.evaluation import features, measures


def test_a_persons_scans_are_averaged_whatever_their_order():
    values = np.array([[1.0, 0.0], [5.0, 5.0], [3.0, 4.0]])
    rows, persons = features.person_rows(values, ["a", "b", "a"])
    assert persons == ("a", "b")
    assert rows.tolist() == [[2.0, 2.0], [5.0, 5.0]]
    single, _persons = features.person_rows(np.array([1.0, 4.0, 2.0]), ["a", "b", "a"])
    assert single.tolist() == [1.5, 4.0]


def test_an_extractor_that_loses_rows_is_refused():
    with pytest.raises(InputError, match="2 feature rows for 3 scans"):
        features.person_rows(np.zeros((2, 4)), ["a", "b", "c"])


def test_the_type_enforces_one_vector_a_person():
    with pytest.raises(ValueError, match="more than one"):
        FeatureSet(values=np.zeros((2, 3), np.float32), person_ids=("a", "a"), extractor="x")


def test_scans_become_a_feature_set_of_persons():
    rows = np.array([[1.0, 0.0], [5.0, 5.0], [3.0, 4.0]])
    found = features.by_person(rows, ["a", "b", "a"], extractor="x", weights_sha256="ab")
    assert found.person_ids == ("a", "b")
    assert found.values.dtype == np.float32
    assert found.values.tolist() == [[2.0, 2.0], [5.0, 5.0]]
    assert (found.extractor, found.weights_sha256) == ("x", "ab")


def test_a_stored_set_is_found_by_what_it_was_made_from_only(tmp_path):
    one = features.by_person(np.eye(2), ["a", "b"], extractor="x")
    features.save_features(tmp_path / "old", "train", one, made_from="these voxels")
    features.save_features(tmp_path / "plain", "train", one)
    folders = (tmp_path / "none", tmp_path / "plain", tmp_path / "old")
    found = features.find_features(folders, "x", "train", "these voxels")
    assert found is not None
    assert (found.values == one.values).all()
    assert features.find_features(folders, "x", "train", "other voxels") is None
    assert features.find_features(folders, "y", "train", "these voxels") is None


def test_features_of_two_extractors_or_two_versions_never_meet():
    sets = {
        name: features.by_person(np.eye(2), ["a", "b"], extractor=extractor, weights_sha256=sha)
        for name, extractor, sha in (("real", "x", "1"), ("same", "x", "1"), ("new", "x", "2"))
    }
    features.require_one_extractor({name: sets[name] for name in ("real", "same")})
    with pytest.raises(InputError, match="'real' and 'new' were made by different"):
        features.require_one_extractor(sets)


def test_sets_are_read_back_and_bytes_repeat(tmp_path):
    one = FeatureSet(
        values=np.eye(3, dtype=np.float32),
        person_ids=("P1", "P2", "Pé"),
        extractor=features.PRIMARY,
        weights_sha256="ab",
    )
    for folder in ("a", "b"):
        features.save_features(tmp_path / folder / features.FOLDER, "validation", one)
    stored = [tmp_path / f / "features" / "domain-train" / "validation.npz" for f in "ab"]
    assert stored[0].read_bytes() == stored[1].read_bytes()
    found = features.read_features(tmp_path / "a")[features.PRIMARY]["validation"]
    assert (found.values == one.values).all()
    assert found.values.dtype == np.float32
    assert (found.person_ids, found.weights_sha256) == (one.person_ids, "ab")


def test_regions_shrink_where_tissue_is_taken_away(brains):
    grid = brain_grid(8)
    names = measures.MEASURES
    healthy = measures.describe(brains(8, 1, warp=0), grid).mean(axis=0)
    ill = measures.describe(brains(8, 1, warp=0, atrophy=0.6), grid).mean(axis=0)
    change = dict(zip(names, ill - healthy, strict=True))
    frontal = [change["frontal_left"], change["frontal_right"]]
    others = [change[f"{lobe}_left"] for lobe in ("occipital", "parietal")]
    assert max(frontal) < -0.02
    assert max(frontal) < min(others)


def test_the_mirror_image_swaps_left_and_right(brains):
    grid, names = brain_grid(8), measures.MEASURES
    volumes = brains(3, 2)
    plain = measures.describe(volumes, grid)
    mirrored = measures.describe(np.ascontiguousarray(volumes[:, ::-1]), grid)
    for lobe in measures.LOBES:
        asymmetry = names.index(f"{lobe}_asymmetry")
        assert mirrored[:, asymmetry] == pytest.approx(-plain[:, asymmetry], abs=1e-5)
        left, right = names.index(f"{lobe}_left"), names.index(f"{lobe}_right")
        assert mirrored[:, left] == pytest.approx(plain[:, right], abs=1e-5)


def test_tissue_shares_of_three_plain_classes_are_counted():
    volume = np.zeros((20, 24, 20), np.float32)
    inside = volume[2:-2, 2:-2, 2:-2].reshape(-1).copy()
    n = len(inside)
    values = np.repeat([0.15, 0.45, 0.75], [n // 5, n // 2, n - n // 5 - n // 2])
    noise = 0.02 * np.random.default_rng(0).normal(size=n)
    volume[2:-2, 2:-2, 2:-2] = (values + noise).reshape(16, 20, 16)
    grey, white, fluid, brain_ml = measures.describe(volume[None], brain_grid(8))[0, :4]
    assert fluid == pytest.approx(0.2, abs=0.01)
    assert grey == pytest.approx(0.5, abs=0.01)
    assert white == pytest.approx(0.3, abs=0.01)
    assert brain_ml == pytest.approx(n * 0.512)


def test_an_empty_volume_has_no_brain():
    empty = measures.describe(np.zeros((1, 20, 24, 20), np.float32), brain_grid(8))
    assert not empty.any()
    assert measures.overlap(np.ones((1, 2, 2, 2)), np.ones((2, 2, 2), bool)) == [1.0]


def test_the_distance_of_two_histograms_is_scipys_wasserstein_distance():
    draw = np.random.default_rng(0)
    one, other = (draw.gamma(shape, size=(12, 12, 12)).astype(np.float32) for shape in (2, 9))
    rows = measures.brightness(np.stack([one, other]))
    z = [(v.ravel() - v.mean()) / v.std() for v in (one, other)]

    found = np.abs(rows[0] - rows[1]).mean()

    # 99 percentiles leave out the outer half percent of each tail.
    assert found == pytest.approx(wasserstein_distance(*z), rel=0.06)


@given(st.floats(0.1, 5), st.floats(0.01, 2))
def test_gain_and_offset_do_not_change_the_histogram(gain, offset):
    volume = np.random.default_rng(1).uniform(0.1, 1, (1, 6, 6, 6))

    changed = measures.brightness(gain * volume + offset)

    assert np.allclose(changed, measures.brightness(volume), atol=1e-9)


def test_an_empty_volume_has_a_flat_histogram():
    assert not measures.brightness(np.zeros((1, 4, 4, 4), np.float32)).any()
