"""Has the network begun to copy training persons? Looked at while it is trained.

`Watch.look` is the way in, at log-spaced steps (`is_due`). Diagnosis by diagnosis, because rare
ones are seen more often and learned by heart first, samples are compared with training and with
validation persons, in the directions that the network sees: the distance to the nearest training
person divided by the distance to the nearest validation person, relative to the same ratio of the
Gaussian floor's samples from the same noise. Quality appears at a time that does not depend on
the number of persons, copying at one that grows with it (arXiv 2505.17638), so a run on few
persons must end early; the weights that are kept are those of the last look that passed.

Validation persons are few, and some stand nearer to everybody than others. So the ratio alone
decides nothing: it must also be smaller than in 95 % (shared between the diagnoses) of the ways
to call as many of these persons training persons. That is exact where the network does not know
which of them it saw. Where it copies very few of many persons, the labels can hide it.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rarescan.generative.contract import Prior
from rarescan.seeds import derive, generator

Outcome = Literal["pass", "fail", "insufficient"]
_FIRST_STEP = 16
_SMALLEST_RATIO = 0.93
"""Runs on 12 patients have 0.8 when the search for copies in images (`evaluation.copies`) finds the
first, and 0.85-0.91 a factor of two in steps before; `benchmarks/memorisation.py`. The families'
defaults on 39 patients end above 0.97."""
_LEVEL = 0.05
_FEWEST_VALIDATION = 5
"""Of a diagnosis. With fewer, the labels alone could give 12 copied patients a chance above 2 %."""
_N_SAMPLES, _N_ON_A_GRID = 96, 48
"""Of all diagnoses together; a U-Net's are dear."""
_AT_ONCE_ON_A_GRID = 4
_N_RELABELLINGS = 499


def is_due(step: int, n_steps: int) -> bool:
    """Return whether a step is a power of two from 16 on, or the last."""
    return step == n_steps or (step >= _FIRST_STEP and not step & (step - 1))


class Watch:
    """The persons of a training, and the samples of its untrained prior to compare with.

    Parameters
    ----------
    prior : Prior
        Untrained, on the CPU: its samples are the Gaussian floor's.
    train, held_out : (codes, encoded)
        Whitened codes, shape (n, *code_shape), and encoded conditions of training and of
        validation persons.
    seed : int
        Of the noise and of the relabellings.
    """

    def __init__(
        self,
        prior: Prior,
        train: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor],
        *,
        seed: int,
    ) -> None:
        self._prior, self._train, self._seed = prior, train, seed
        n = prior.floor.n_diagnoses
        self._asked = train[1][self._rows()]
        self._diagnoses = [e[:, :n].argmax(1).numpy() for e in (train[1], held_out[1], self._asked)]
        self._judged = [
            number for number in range(n)
            if (self._diagnoses[1] == number).sum() >= _FEWEST_VALIDATION
        ]  # fmt: skip
        if self._judged:
            with torch.no_grad():
                self._people = torch.cat([self._places(*part) for part in (train, held_out)])
                self._before = self._distances(torch.device("cpu"))

    def look(self, device: torch.device) -> dict[str, Any]:
        """Sample the prior as it is now and say whether it copies.

        Parameters
        ----------
        device : torch.device
            Where the prior is.

        Returns
        -------
        dict
            `diagnoses`: name -> `ratio`, nearest training over nearest validation distance,
            relative to the floor's (geometric mean over samples; 1 is no nearer than the floor),
            and `p`, the share of relabellings with a ratio as small. Of diagnoses with fewer than
            5 validation persons nothing is said. `ratio` and `p`: those of the smallest ratio,
            None without. `outcome`: fail, pass, or insufficient where a diagnosis is not judged.
        """
        if not self._judged:
            return {"outcome": "insufficient", "ratio": None, "p": None, "diagnoses": {}}
        with torch.no_grad():
            now = self._distances(device)
        found = {number: self._compare(now, number) for number in self._judged}
        level = _LEVEL / len(found)
        copied = any(ratio < _SMALLEST_RATIO and p <= level for ratio, p in found.values())
        all_judged = len(found) == self._prior.floor.n_diagnoses
        outcome: Outcome = "fail" if copied else "pass" if all_judged else "insufficient"
        ratio, p = min(found.values())
        names = self._prior.encoder.diagnoses
        each = {names[n]: {"ratio": r, "p": chance} for n, (r, chance) in found.items()}
        return {"outcome": outcome, "ratio": ratio, "p": p, "diagnoses": each}

    def _distances(self, device: torch.device) -> npt.NDArray[np.float64]:
        """Return the log distances of samples to all persons, shape (samples, persons)."""
        codes, encoded = self._train
        if type(self._prior).close is not Prior.close:
            self._prior.close(codes, encoded)
        places = [
            self._place(self._prior.sample(part.to(device), self._noise(start, part).to(device)),
                        part.to(device))
            for start, part in self._parts(self._asked)
        ]  # fmt: skip
        distances = torch.cdist(torch.cat(places).double(), self._people.double())
        found: npt.NDArray[np.float64] = distances.clamp_min(1e-9).log().numpy()
        return found

    def _rows(self) -> npt.NDArray[np.intp]:
        """Return whose conditions the samples get: a diagnosis evenly, then a person of it."""
        random = generator(self._seed, "snapshot conditions")
        n = self._prior.floor.n_diagnoses
        classes = self._train[1][:, :n].argmax(1).numpy()
        members = [np.flatnonzero(classes == c) for c in np.unique(classes)]
        n_samples = _N_ON_A_GRID if self._on_a_grid else _N_SAMPLES
        return np.array([random.choice(members[i % len(members)]) for i in range(n_samples)])

    def _noise(self, start: int, part: Tensor) -> Tensor:
        drawn = []
        for row in range(start, start + len(part)):
            random = torch.Generator("cpu").manual_seed(derive(self._seed, "snapshot", row))
            drawn.append(torch.randn(self._prior.noise_size, generator=random))
        return torch.stack(drawn)

    @property
    def _on_a_grid(self) -> bool:
        return len(self._prior.floor.code_shape) > 1

    def _parts(self, values: Tensor) -> list[tuple[int, Tensor]]:
        """Return the first row and the rows of what is computed at once."""
        size = _AT_ONCE_ON_A_GRID if self._on_a_grid else _N_SAMPLES
        return [(i * size, part) for i, part in enumerate(torch.split(values, size))]

    def _places(self, codes: Tensor, encoded: Tensor) -> Tensor:
        asked = [part for _, part in self._parts(encoded)]
        found = [
            self._place(part, e)
            for (_, part), e in zip(self._parts(codes), asked, strict=True)
        ]  # fmt: skip
        return torch.cat(found)

    def _place(self, codes: Tensor, encoded: Tensor) -> Tensor:
        """Return deviations from the conditions' means in the directions that count."""
        deviation = (codes - self._prior.floor.mean(encoded)).flatten(1)
        if self._on_a_grid:
            return (deviation @ self._prior.floor.directions).cpu()
        return deviation[:, : self._prior.spec.components].cpu()

    def _compare(self, now: npt.NDArray[np.float64], number: int) -> tuple[float, float]:
        """Return a diagnosis's ratio and the share of relabellings in which it is as small."""
        train, held_out, asked = (part == number for part in self._diagnoses)
        persons = np.r_[train, held_out]
        change = [d[asked][:, persons] for d in (now, self._before)]
        trained = np.arange(persons.sum()) < train.sum()
        random = generator(self._seed, "snapshot labels", number)
        found = _log_ratio(change, trained)
        others = [_log_ratio(change, random.permutation(trained)) for _ in range(_N_RELABELLINGS)]
        as_small = sum(other <= found for other in others)
        return round(float(np.exp(found)), 4), (1 + as_small) / (1 + _N_RELABELLINGS)


def _log_ratio(change: list[npt.NDArray[np.float64]], trained: npt.NDArray[np.bool_]) -> float:
    """Return the mean log ratio of samples, with log distances (now, before), minus the floor's."""
    now, before = (d[:, trained].min(1) - d[:, ~trained].min(1) for d in change)
    return float((now - before).mean())
