from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rarescan.cohort.store import open_cohort
from rarescan.errors import InputError
from rarescan.generative import code_store, floor
from rarescan.generative.anatomy import to_image
from rarescan.generative.code_store import (
    People,
    columns_at_a_time,
    people_of,
    rows_of_tensor,
    rows_through,
    stored,
    stored_images,
)
from rarescan.generative.codecs import PcaCodec
from rarescan.generative.conditions import ConditionEncoder


@pytest.fixture(scope="module")
def people(cohort: Path) -> People:
    opened = open_cohort(cohort)
    return people_of(opened, "train", ConditionEncoder.fit([s.condition for s in opened.scans], ()))


def numbers(rows: Sequence[int]) -> torch.Tensor:
    return torch.stack([torch.full((3, 4), float(row)) for row in rows])


def test_rows_are_in_their_places_whatever_the_workers(people: People, tmp_path: Path) -> None:
    shape = (len(people), *people.image_shape)
    tables = [
        stored(tmp_path / f"{n}.npy", shape, people.images_of, at_a_time=5, workers=n)
        for n in (1, 2)
    ]
    assert torch.equal(tables[0], people.images)
    first, second = ((tmp_path / f"{workers}.npy").read_bytes() for workers in (1, 2))
    assert first == second


def test_what_was_written_before_a_kill_is_not_computed_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def killed(rows: Sequence[int]) -> torch.Tensor:
        asked.extend(rows)
        if 12 in rows:
            raise KeyboardInterrupt
        return numbers(rows)

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "t.npy", (20, 3, 4), killed, at_a_time=4)
    assert asked == list(range(16))
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "t.npy", (20, 3, 4), killed, at_a_time=4)
    assert asked == [12, 13, 14, 15]
    table = stored(tmp_path / "t.npy", (20, 3, 4), numbers, at_a_time=4)
    assert torch.equal(table, numbers(range(20)))


def test_a_table_in_use_is_not_changed_on_the_disk(tmp_path: Path) -> None:
    table = stored(tmp_path / "t.npy", (4, 3, 4), numbers)
    table += 1
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "t.npy")), numbers(range(4)))


def test_a_part_without_persons_is_an_empty_table(tmp_path: Path) -> None:
    assert stored(tmp_path / "t.npy", (0, 3, 4), numbers).shape == (0, 3, 4)
    assert not (tmp_path / "t.npy").exists()


def test_images_are_those_of_the_persons_first_scans(people: People, tmp_path: Path) -> None:
    volumes = np.load(people.root / "rarescan" / "volumes.npy")
    table = stored_images(tmp_path / "images.npy", people)
    assert len(people) == 21
    for row in (0, 20):
        assert torch.equal(table[row], torch.from_numpy(to_image(volumes[people.positions[row]])))
    assert torch.equal(people.images, table)
    means = rows_through(lambda images: images.flatten(1).mean(1), people.images_of)
    torch.testing.assert_close(means([3, 1]), table[[3, 1]].flatten(1).mean(1))


def test_an_empty_scan_is_named(people: People, tmp_path: Path) -> None:
    (tmp_path / "rarescan").mkdir()
    volumes = np.load(people.root / "rarescan" / "volumes.npy")
    volumes[people.positions[2]] = np.nan
    np.save(tmp_path / "rarescan" / "volumes.npy", volumes)
    moved = People(
        root=tmp_path,
        positions=people.positions,
        scan_ids=people.scan_ids,
        encoded=people.encoded,
        grid_shape=people.grid_shape,
    )
    with pytest.raises(InputError, match=people.scan_ids[2]):
        stored_images(tmp_path / "images.npy", moved)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 50), limit=st.integers(4, 400))
def test_blocks_of_columns_cover_each_once(rows: int, columns: int, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_store, "BLOCK_BYTES", limit)
        parts = list(columns_at_a_time(torch.zeros(rows, columns)))
    covered = [i for part in parts for i in range(part.start, part.stop)]
    assert covered == list(range(columns))
    assert all(4 * rows * (p.stop - p.start) <= max(limit, 4 * rows) for p in parts)


def test_the_gaussian_and_the_components_do_not_depend_on_the_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = torch.Generator().manual_seed(3)
    codes = torch.randn(20, 4, 5, 5, 5, generator=random) * torch.linspace(0.1, 3, 5)
    codes[:, 0, 0] = 2.0
    encoded = torch.zeros(20, 4)
    encoded[:8, 0], encoded[8:, 1] = 1, 1
    encoded[:, 3] = torch.randn(20, generator=random)
    whole = floor.Floor.fit(codes, encoded, 2), PcaCodec.fit(codes)
    monkeypatch.setattr(code_store, "BLOCK_BYTES", 4 * 20 * 37)
    parts = floor.Floor.fit(codes, encoded, 2), PcaCodec.fit(codes)
    for name, value in whole[0].state_dict().items():
        torch.testing.assert_close(parts[0].state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert torch.equal(parts[1].state()["varying"], whole[1].state()["varying"])
    torch.testing.assert_close(parts[1].encode(codes), whole[1].encode(codes), rtol=0, atol=0.02)


def test_the_gaussian_of_a_table_on_the_disk_is_that_of_the_memory(tmp_path: Path) -> None:
    codes = torch.randn(20, 4, 5, 5, 5, generator=torch.Generator().manual_seed(5))
    encoded = torch.zeros(20, 3)
    encoded[:8, 0], encoded[8:, 1] = 1, 1
    table = stored(tmp_path / "t.npy", tuple(codes.shape), rows_of_tensor(codes))
    here, there = floor.Floor.fit(codes, encoded, 2), floor.Floor.fit(table, encoded, 2)
    for name, value in here.state_dict().items():
        assert torch.equal(there.state_dict()[name], value)
