import pytest
import torch

from rarescan.generative.floor import Floor

N, DIMENSIONS = 30, 12


def people(shape: tuple[int, ...] = (DIMENSIONS,)) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(4)
    encoded = torch.zeros(N, 5)
    encoded[: N // 3, 0] = 1
    encoded[N // 3 :, 1] = 1
    encoded[:, 3] = torch.randn(N, generator=random)
    encoded[:, 4] = 1
    codes = torch.randn(N, *shape, generator=random)
    codes = codes * torch.linspace(3, 0.1, codes[0].numel()).view(shape)
    codes[: N // 3] += 2
    return codes, encoded


def covariance(floor: Floor) -> torch.Tensor:
    root = floor.unwhiten(torch.eye(floor.size).view(-1, *floor.code_shape)).flatten(1).double()
    return root.T @ root


def test_the_floor_is_the_closed_form_gaussian() -> None:
    codes, encoded = people()
    floor = Floor.fit(codes, encoded, 2)
    # Ridge regression written out: one person's worth on all but the diagnoses.
    design, values = encoded.double(), codes.double()
    inverse = torch.linalg.inv(
        design.T @ design + torch.diag(torch.tensor([1e-9, 1e-9, 1, 1, 1.0]))
    )
    slopes = inverse @ design.T @ values
    residuals = values - design @ slopes
    pooled = residuals.T @ residuals / (N - torch.trace(inverse @ design.T @ design))
    expected = 0.9 * pooled + 0.1 * pooled.diagonal().diag()
    torch.testing.assert_close(covariance(floor), expected, rtol=1e-4, atol=1e-5)
    asked = encoded[:3]
    torch.testing.assert_close(
        floor.code_mean(asked).double(), design[:3] @ slopes, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(DIMENSIONS,), (4, 3, 2, 2)])
def test_whitening_is_undone(shape: tuple[int, ...]) -> None:
    codes, encoded = people(shape)
    floor = Floor.fit(codes, encoded, 2)
    torch.testing.assert_close(floor.unwhiten(floor.whiten(codes)), codes, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        floor.unwhiten(floor.mean(encoded)).flatten(1),
        floor.code_mean(encoded),
        rtol=1e-3,
        atol=1e-4,
    )


def test_the_total_variance_of_a_grid_code_is_kept_though_its_rank_is_cut() -> None:
    codes, encoded = people((4, 3, 2, 2))
    floor = Floor.fit(codes, encoded, 2)
    residuals = codes.flatten(1) - floor.code_mean(encoded)
    wanted = residuals.square().sum(0).sum() / (N - 4)
    assert len(floor.gains) == 16
    assert covariance(floor).trace().item() == pytest.approx(wanted.item(), rel=0.1)


def test_a_hidden_diagnosis_has_the_even_mean_of_all() -> None:
    codes, encoded = people()
    floor = Floor.fit(codes, encoded, 2)
    one = encoded[:1].repeat(3, 1)
    one[:, :3] = torch.eye(3)
    means = floor.code_mean(one)
    torch.testing.assert_close(means[2], (means[0] + means[1]) / 2)
    torch.testing.assert_close(floor.means_by_diagnosis(one[2:])[:, 0], floor.mean(one[:2]))


def test_a_position_that_never_varies_stays_at_its_mean() -> None:
    codes, encoded = people()
    codes[:, 5] = 7
    floor = Floor.fit(codes, encoded, 2)
    drawn = floor.unwhiten(torch.randn(9, DIMENSIONS, generator=torch.Generator().manual_seed(0)))
    assert drawn[:, 5].abs().max() < 1e-4
    torch.testing.assert_close(
        floor.code_mean(encoded)[:, 5], torch.full((N,), 7.0), rtol=1e-4, atol=1e-4
    )
