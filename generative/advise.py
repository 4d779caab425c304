"""What to train on a cohort of this size: families, codec, steps, and what it takes.

`advise` is the way in (`rarescan train PREPARED --plan`). It reads how many training persons a
cohort has and how fine its grid is; it trains nothing and changes nothing. Memory and work are
counted (`memory.footprint`); hours follow from the speed of this machine's own convolutions, so
they are good to a factor of two, and training itself says it better once it runs.
"""

import time
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

import torch

from rarescan.cohort.contracts import Cohort
from rarescan.errors import InputError
from rarescan.generative.anatomy import CHANNELS
from rarescan.generative.code_store import first_scans
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.memory import Footprint, footprint, free_bytes
from rarescan.generative.places import read_places
from rarescan.generative.spec import Family, GeneratorSpec

Verdict = Literal["take", "try", "not yet", "refused"]

FEWEST_OF_A_DIAGNOSIS = 2
_ENOUGH_TO_TRY, _ENOUGH_TO_TAKE = 12, 20
"""Patients; below the first a network has never been seen to beat the Gaussian here."""
_ENOUGH_FOR_KL = 300
"""Persons; an autoencoder that sees fewer blurs what the disease changes."""
_LARGEST_PCA_BYTES = 2e9
_OVERHEAD_SECONDS: dict[Family, float] = {"vae": 0.013, "diffusion": 0.016, "gan": 0.05}
"""A step on principal components costs this, however little it computes (a loaded CPU)."""
_SHARE_OF_SPEED = 0.5
"""Of the speed of a lone convolution that a whole training step reaches."""
_PROBE_EDGE = {"cpu": 16, "cuda": 48}
_FAMILIES: tuple[Family, ...] = ("gaussian", "transfer", "diffusion", "vae", "gan")


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What is said of one family."""

    family: Family
    verdict: Verdict
    why: str
    settings: dict[str, Any]
    """What differs from the defaults, for `train.<family>` in the settings."""
    epochs_over_patients: float | None = None
    """How often the rarer diagnosis's persons are seen; None where nothing is trained."""
    memory_gb: float | None = None
    disk_gb: float | None = None
    hours: float | None = None
    cost: float | None = None
    """Hours times the price of one; None without a price."""


@dataclass(frozen=True, kw_only=True)
class Advised:
    """What is said of a cohort."""

    persons: dict[str, int]
    """Training persons by diagnosis."""
    validation_persons: int
    spacing_mm: float
    device: str
    notes: tuple[str, ...]
    families: tuple[Advice, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def table(self) -> str:
        """Return the advice as text."""
        counts = ", ".join(f"{n} {name}" for name, n in self.persons.items())
        lines = [
            f"Training persons: {counts}; validation {self.validation_persons}; "
            f"{self.spacing_mm:g} mm; on {self.device}.",
            "",
            f"{'family':<10} {'':<8} {'time':>8} {'memory':>8} {'disk':>8} {'cost':>8}  settings",
        ]
        for one in self.families:
            cells = (
                _duration(one.hours),
                _cell(one.memory_gb, "{:.1f} GB"),
                _cell(one.disk_gb, "{:.1f} GB"),
                _cell(one.cost, "{:.2f}"),
            )
            given = ", ".join(f"{key}: {value}" for key, value in one.settings.items())
            lines += [
                f"{one.family:<10} {one.verdict:<8} {cells[0]:>8} {cells[1]:>8} {cells[2]:>8} "
                f"{cells[3]:>8}  {{{given}}}",
                f"           {one.why}",
            ]
        return "\n".join([*lines, "", *self.notes])


def advise(cohort: Cohort, *, device: torch.device, price_per_hour: float | None = None) -> Advised:
    """Return what to train on a cohort, with reasons and what it takes.

    Parameters
    ----------
    cohort : Cohort
        Prepared, with a partition; no volume is read.
    device : torch.device
        Where training would run; its speed and free memory are asked for.
    price_per_hour : float, optional
        Of the machine, in any currency.

    Raises
    ------
    InputError
        The cohort is not prepared or has no training persons.
    """
    scans = first_scans(cohort, "train")
    if cohort.grid is None or not scans:
        raise InputError(
            f"{cohort.root} has no training persons on one grid.",
            remedy="Name a cohort written by `rarescan prepare`.",
        )
    names = GeneratorSpec().conditions
    encoder = ConditionEncoder.fit([scan.condition for scan in scans.values()], names)
    case = _Case(
        n_persons=len(scans),
        n_patients=min(encoder.n_by_diagnosis),
        n_features=encoder.n_features,
        shape=cohort.grid.shape,
        spacing_mm=cohort.grid.spacing_mm,
        free_bytes=free_bytes(device),
        flops_per_second=flops_per_second(device) * _SHARE_OF_SPEED,
        price_per_hour=price_per_hour,
    )
    held_out = len(first_scans(cohort, "validation"))
    return Advised(
        persons=dict(zip(encoder.diagnoses, encoder.n_by_diagnosis, strict=True)),
        validation_persons=held_out,
        spacing_mm=case.spacing_mm,
        device=device.type,
        notes=_notes(case, held_out, len(encoder.diagnoses)),
        families=tuple(_advice(case, family) for family in _FAMILIES),
    )


@dataclass(frozen=True, kw_only=True)
class _Case:
    """What the advice depends on."""

    n_persons: int
    n_patients: int
    n_features: int
    shape: tuple[int, int, int]
    spacing_mm: float
    free_bytes: int
    flops_per_second: float
    price_per_hour: float | None

    @property
    def codec(self) -> Literal["pca", "haar"]:
        """Principal components, unless they would be too large to keep."""
        n_bytes = 4 * CHANNELS * prod(self.shape) * self.n_persons
        return "pca" if n_bytes <= _LARGEST_PCA_BYTES else "haar"

    def settings(self, family: Family) -> dict[str, Any]:
        """Return what differs from the defaults; grids as in the presets of 1 and 2 mm."""
        if self.codec == "pca":
            return {"codec": "pca"}
        fine = self.spacing_mm < 2
        if family not in _OVERHEAD_SECONDS:
            return {"codec": "haar"}
        if family == "vae":
            sizes: dict[str, Any] = {"width": 16, "latent": 64, "batch_size": 8, "steps": 5000}
            rate, decay = 1e-3, 0.999
        else:
            sizes = {"width": 64, "batch_size": 4 if fine else 8, "steps": 20000 if fine else 10000}
            rate = 5e-4 if family == "gan" else 1e-4 if fine else 2e-4
            decay = 0.999 if family == "gan" else 0.9999 if fine else 0.9995
        own = {"solver_steps": 15, "guidance": 1.0} if family == "diffusion" else {}
        return {
            "codec": "haar",
            "depth": 3,
            **sizes,
            "learning_rate": rate,
            "ema_decay": decay,
            **own,
        }


def _advice(case: _Case, family: Family) -> Advice:
    settings = case.settings(family)
    verdict, why = _verdict(case, family)
    if verdict == "refused":
        return Advice(family=family, verdict=verdict, why=why, settings=settings)
    spec = GeneratorSpec(family=family, **settings)
    needs = footprint(spec, case.shape, case.n_features, case.n_persons)
    hours = _hours(case, spec, needs)
    memory = max(needs.training_bytes, needs.sampling_bytes)
    if memory > case.free_bytes:
        why = f"Needs more memory than the {case.free_bytes / 1e9:.1f} GB that are free here. {why}"
        verdict = "refused"
    trained = family in _OVERHEAD_SECONDS
    return Advice(
        family=family,
        verdict=verdict,
        why=why,
        settings=settings,
        epochs_over_patients=_epochs(case, spec) if trained else None,
        memory_gb=round(memory / 1e9, 2),
        disk_gb=round(needs.disk_bytes / 1e9, 2),
        hours=round(hours, 4),
        cost=None if case.price_per_hour is None else round(hours * case.price_per_hour, 2),
    )


def _verdict(case: _Case, family: Family) -> tuple[Verdict, str]:
    n = case.n_patients
    if n < FEWEST_OF_A_DIAGNOSIS:
        return "refused", f"{n} person of the rarest diagnosis: nothing can be fitted."
    if family == "gaussian":
        return "take", "Closed form, seconds: what every network must beat."
    if family == "transfer":
        why = "Works from a handful of patients; its samples keep a real person's anatomy, so "
        return "take", why + "they are never released."
    measured = _measured(family)
    if n < _ENOUGH_TO_TRY:
        many = read_places().patients
        return "not yet", f"{n} patients, too few by our judgement; with {many}: {measured}"
    if family == "diffusion":
        why = "Ships the Gaussian by itself where validation persons do not see a gain. "
        return ("take" if n >= _ENOUGH_TO_TAKE else "try"), why + measured
    place = read_places().families.get(family)
    if n < _ENOUGH_TO_TAKE or place is None or place.place != "better":
        return "try", f"Compare it with the Gaussian before you rely on it. {measured}"
    return "take", measured


def _measured(family: Family) -> str:
    place = read_places().families.get(family)
    if place is None:
        return "Not measured against it."
    return (
        f"Measured: {place.place} than it ({1000 * place.difference:+.1f} +- {1000 * place.se:.1f} "
        f"in squared MMD x 1000, p {place.p:.2g})."
    )


def _hours(case: _Case, spec: GeneratorSpec, needs: Footprint) -> float:
    if spec.family not in _OVERHEAD_SECONDS:
        return 0.0
    computed = needs.flops_per_step / case.flops_per_second
    return spec.steps * max(computed, _OVERHEAD_SECONDS[spec.family]) / 3600


def _epochs(case: _Case, spec: GeneratorSpec) -> float:
    # Batches are drawn evenly from the diagnoses, of which there are two or a few.
    return round(spec.steps * spec.batch_size / 2 / case.n_patients, 1)


def _notes(case: _Case, held_out: int, n_diagnoses: int) -> tuple[str, ...]:
    notes = [
        f"codec {case.codec}: "
        + (
            "whole images in as many numbers as there are persons; nothing is blurred."
            if case.codec == "pca"
            else "exact and without training; principal components would not fit into 2 GB."
        ),
        "codec kl: "
        + (
            f"refused; {case.n_persons} persons are fewer than the {_ENOUGH_FOR_KL} that an "
            "autoencoder needs to keep the disease. Import one (rarescan import-weights)."
            if case.n_persons < _ENOUGH_FOR_KL
            else "possible; training refuses it where it loses the diagnosis."
        ),
        "augmentation: noise in the codes (built in). No left-right flip: the side may be the "
        "disease.",
        "steps: training stops by itself before it copies persons, so more steps cost time only.",
    ]
    if case.n_patients >= FEWEST_OF_A_DIAGNOSIS:
        where = read_places().measured_on
        notes.append(f"measured against PCA + Gaussian: {where}; elsewhere expected.")
    if held_out < _ENOUGH_TO_TAKE:
        notes.append(
            f"{held_out} validation persons are too few to tell generators apart (20 are needed)."
        )
    if n_diagnoses < 2:
        notes.append("Only one diagnosis: there is no disease to learn.")
    return tuple(notes)


def flops_per_second(device: torch.device) -> float:
    """Return how many operations a second a convolution in 3D reaches here (0.2 s to measure)."""
    edge = _PROBE_EDGE.get(device.type, 16)
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    layer = torch.nn.Conv3d(64, 64, 3, padding=1).to(device, kind)
    image = torch.zeros(2, 64, edge, edge, edge, device=device, dtype=kind)
    durations: list[float] = []
    with torch.no_grad():
        for _ in range(4):
            start = time.perf_counter()
            layer(image)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            durations.append(time.perf_counter() - start)
    return 2 * 2 * 64 * 64 * 27 * edge**3 / min(durations)


def _duration(hours: float | None) -> str:
    if hours is None:
        return "-"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
