"""The `transfer` baseline: a real person's code, moved to another condition.

The donor keeps anatomy and texture, so samples are near copies of real persons by construction
and are never released (`near_copies`). It works from a handful of patients.
"""

from typing import ClassVar

import torch
from torch import Tensor

from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Prior
from rarescan.generative.floor import Floor
from rarescan.generative.spec import Family, GeneratorSpec


class Transfer(Prior):
    """Donors of the most frequent diagnosis plus the asked condition's mean effect."""

    family: ClassVar[Family] = "transfer"
    near_copies: ClassVar[bool] = True
    donors: Tensor
    severity_sd: Tensor

    def __init__(self, spec: GeneratorSpec, floor: Floor, encoder: ConditionEncoder) -> None:
        super().__init__(spec, floor, encoder)
        n_donors = max(encoder.n_by_diagnosis)
        self._donor_diagnosis = encoder.n_by_diagnosis.index(n_donors)
        self.register_buffer("donors", torch.zeros(n_donors, *floor.code_shape))
        self.register_buffer("severity_sd", torch.zeros(floor.n_diagnoses))

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

    def sample(self, encoded: Tensor, noise: Tensor) -> Tensor:
        """Return whitened codes: donor's deviation + asked mean + more or less of the effect."""
        share = torch.special.ndtr(noise[:, 0])
        donors = (share * len(self.donors)).long().clamp_max(len(self.donors) - 1)
        diagnosis = encoded[:, : self.floor.n_diagnoses].argmax(1)
        asked = self.floor.mean(encoded)
        effect = asked - self.floor.means_by_diagnosis(encoded)[self._donor_diagnosis]
        more = (self.severity_sd[diagnosis] * noise[:, 1]).view(-1, *[1] * (asked.ndim - 1))
        return self.donors[donors] + asked + more * effect
