"""The `transfer` baseline: a real person's code, moved to another condition.

The donor keeps anatomy and texture, so samples are near copies of real persons by construction
and are never released (`near_copies`). It works from a handful of patients.

In `code` space the diagnosis's mean effect is added to the donor: tissue that atrophy moves away
fades. In `deformation` space it moves (`deformation.fit_velocity`), and only what no movement
explains of the effect is added. Age, sex and site are added in both.
"""

from typing import ClassVar

import torch
from torch import Tensor

from rarescan.cohort.contracts import BRAIN_BOX_MM
from rarescan.errors import SettingError
from rarescan.generative.codecs import HaarCodec
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Prior
from rarescan.generative.deformation import (
    coarse,
    exponentiate,
    fit_velocity,
    lattice_shape,
    moved,
)
from rarescan.generative.floor import Floor
from rarescan.generative.spec import Family, GeneratorSpec

_PERSONS_AT_A_TIME = 4


class Transfer(Prior):
    """Donors of the most frequent diagnosis plus the asked condition's mean effect."""

    family: ClassVar[Family] = "transfer"
    near_copies: ClassVar[bool] = True
    donors: Tensor
    severity_sd: Tensor
    velocities: Tensor
    remainders: Tensor
    references: Tensor

    def __init__(self, spec: GeneratorSpec, floor: Floor, encoder: ConditionEncoder) -> None:
        super().__init__(spec, floor, encoder)
        n_donors = max(encoder.n_by_diagnosis)
        self._donor_diagnosis = encoder.n_by_diagnosis.index(n_donors)
        self.register_buffer("donors", torch.zeros(n_donors, *floor.code_shape))
        self.register_buffer("severity_sd", torch.zeros(floor.n_diagnoses))
        if spec.space == "deformation":
            self._codec = _codec_of(spec, floor)
            nodes = (floor.n_diagnoses, 3, *lattice_shape())
            self.register_buffer("velocities", torch.zeros(nodes))
            self.register_buffer("remainders", torch.zeros(floor.n_diagnoses, *floor.code_shape))
            self.register_buffer("references", torch.zeros(floor.n_diagnoses, encoder.n_features))

    @property
    def noise_size(self) -> int:
        """Which donor, and how severe."""
        return 2

    def close(self, codes: Tensor, encoded: Tensor) -> None:
        """Keep the donors' deviations from their mean, and how much severity varies.

        A diagnosis's severity is a person's projection on its mean effect (1 on average); its
        variance is what the persons' projections have beyond the donors', who have no effect.
        """
        deviation = codes - self.floor.mean(encoded)
        means = self.floor.means_by_diagnosis(encoded)
        diagnosis = encoded[:, : self.floor.n_diagnoses].argmax(1)
        is_donor = diagnosis == self._donor_diagnosis
        self.donors.copy_(deviation[is_donor])
        for number in range(self.floor.n_diagnoses):
            effect = (means[number] - means[self._donor_diagnosis])[0].flatten()
            strength = effect.square().sum().clamp_min(1e-12)
            projections = deviation.flatten(1) @ effect / strength
            excess = projections[diagnosis == number].var() - projections[is_donor].var()
            self.severity_sd[number] = excess.clamp_min(0).sqrt()
        if self.spec.space == "deformation":
            self._fit_movements(deviation, encoded, diagnosis)

    def sample(self, encoded: Tensor, noise: Tensor) -> Tensor:
        """Return whitened codes: donor's deviation + asked mean + more or less of the effect."""
        share = torch.special.ndtr(noise[:, 0])
        donors = (share * len(self.donors)).long().clamp_max(len(self.donors) - 1)
        diagnosis = encoded[:, : self.floor.n_diagnoses].argmax(1)
        spread = self.severity_sd[diagnosis] * noise[:, 1]
        if self.spec.space == "deformation":
            return self._moved(self.donors[donors], encoded, spread)
        asked = self.floor.mean(encoded)
        effect = asked - self.floor.means_by_diagnosis(encoded)[self._donor_diagnosis]
        more = spread.view(-1, *[1] * (asked.ndim - 1))
        return self.donors[donors] + asked + more * effect

    def _fit_movements(self, deviation: Tensor, encoded: Tensor, diagnosis: Tensor) -> None:
        """Fit each diagnosis's velocity to conditional means, and keep what it does not explain.

        The means are those of the floor at the patients' own ages, sexes and sites.
        """
        variance = self._variance(deviation)
        n_persons = self.encoder.n_by_diagnosis
        for number in range(self.floor.n_diagnoses):
            row = encoded[diagnosis == number].mean(0, keepdim=True)
            self.references[number] = row[0]
            if number == self._donor_diagnosis:
                continue
            means = self.floor.code_mean(torch.cat([self._healthy(row), row]))
            well, ill = self._codec.decode(means.view(2, *self.floor.code_shape))
            chance = 1 / n_persons[number] + 1 / n_persons[self._donor_diagnosis]
            self.velocities[number] = fit_velocity(well, ill, variance * chance)
            through = moved(well.numpy(), exponentiate(self.velocities[number]))
            rest = ill - torch.from_numpy(through)
            self.remainders[number] = self._whitened(rest[None])[0]

    def _variance(self, deviation: Tensor) -> Tensor:
        """Return the persons' variance about their conditional means, by channel, shape (2,)."""
        parts = [
            coarse(self._codec.decode(self.floor.unwhiten(part))).square().mean((2, 3, 4)).sum(0)
            for part in torch.split(deviation, _PERSONS_AT_A_TIME)
        ]
        return (torch.stack(parts).sum(0) / len(deviation)).clamp_min(1e-8)

    def _moved(self, donors: Tensor, encoded: Tensor, spread: Tensor) -> Tensor:
        """Return whitened codes of donors seen through their diagnosis's deformation."""
        diagnosis = encoded[:, : self.floor.n_diagnoses].argmax(1)
        strength = self._strength(encoded, diagnosis) + spread
        healthy = donors + self.floor.mean(self._healthy(encoded))
        images = self._codec.decode(self.floor.unwhiten(healthy))
        # On the meta device (`memory.footprint`) there is nothing to move, and only sizes count.
        if not images.is_meta:
            images = _each_moved(images, strength.view(-1, 1, 1, 1, 1) * self.velocities[diagnosis])
        more = strength.view(-1, 1, 1, 1, 1) * self.remainders[diagnosis]
        return self._whitened(images) + more

    def _strength(self, encoded: Tensor, diagnosis: Tensor) -> Tensor:
        """Return how much of the fitted effect is asked for: 1, unless severity is a condition.

        In codes that are not whitened: there, what hardly varies would decide.
        """
        asked, fitted = (
            self.floor.code_mean(rows) - self.floor.code_mean(self._healthy(rows))
            for rows in (encoded, self.references[diagnosis])
        )
        size = fitted.square().sum(1)
        projected = (asked * fitted).sum(1) / size.clamp_min(1e-12)
        return torch.where(size > 0, projected, 0.0)

    def _healthy(self, encoded: Tensor) -> Tensor:
        """Return the features with the donors' diagnosis and no severity."""
        healthy = encoded.clone()
        healthy[:, : self.encoder.n_diagnosis_features] = 0
        healthy[:, self._donor_diagnosis] = 1
        if self.encoder.severity:
            healthy[:, self.encoder.groups[-1].start] = 0
        return healthy

    def _whitened(self, images: Tensor) -> Tensor:
        return self.floor.whiten(self._codec.encode(images))


def _each_moved(images: Tensor, velocities: Tensor) -> Tensor:
    """Return images, shape (n, 2, x, y, z), each seen through its own velocity."""
    pairs = zip(images.cpu(), velocities.cpu(), strict=True)
    seen = [torch.from_numpy(moved(image.numpy(), exponentiate(v))) for image, v in pairs]
    return torch.stack(seen).to(images)


def _codec_of(spec: GeneratorSpec, floor: Floor) -> HaarCodec:
    """Return the codec whose codes the floor describes; a moved donor must be in its span."""
    if spec.codec != "haar":
        raise SettingError(
            f"A deformed donor is no mixture of training persons, as '{spec.codec}' codes are.",
            remedy="Set codec to haar with space deformation, or space to code.",
        )
    x, y, z = (edge * 2**spec.levels for edge in floor.code_shape[1:])
    if len({n / edge for n, edge in zip((x, y, z), BRAIN_BOX_MM, strict=True)}) > 1:
        raise SettingError(
            "Only brains are deformed: pictures have no common anatomy to move.",
            remedy="Set space to code.",
        )
    return HaarCodec((x, y, z), spec.levels)
