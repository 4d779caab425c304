"""One person's visit to a scanner: which series are made, how they lie, what they show.

`write_study` is the way in. Every volume is made by one interpolation, from the person's head in
template space through deformation and pose to the scanner's voxels.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.transform import Rotation

from rarescan.phantom.anatomy import FWHM, Brain, brain_of, brightness_of, receive
from rarescan.phantom.dicom import Pixels, Series, file_name, header_of, stored_values, write_series
from rarescan.phantom.head import HEAD_MM, ball, head_picture, scan_head
from rarescan.phantom.identities import Identity
from rarescan.phantom.persons import Person, draw_site, stream
from rarescan.phantom.scanners import (
    FLAIR,
    LOCALIZER,
    SCANNERS,
    T2,
    Plane,
    Scanner,
    Slices,
    lay_slices,
)
from rarescan.phantom.spec import PRESETS, PhantomConfig

T1_NUMBER = 3
"""Series number of every T1."""
Kind = Literal["person", "lost_slice", "no_t1", "qa"]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One person in one scanner."""

    kind: Kind
    """What is wrong with it, or `person`."""
    config: PhantomConfig
    person: Person
    identity: Identity

    @property
    def study(self) -> str:
        """The name from which UIDs and file names are hashed."""
        return f"{self.config.seed}/{self.config.preset}/{self.person.index}"

    @property
    def scanner(self) -> Scanner:
        """The scanner of the person's site."""
        return SCANNERS[self.person.site]

    @cached_property
    def brain(self) -> Brain:
        """The person's brain at the head's resolution."""
        return brain_of(self.config, self.person, HEAD_MM)

    @cached_property
    def pose(self) -> npt.NDArray[np.float64]:
        """Template -> scanner, see `head_pose`."""
        return head_pose(self.config, self.person)


def write_study(visit: Visit, folder: Path) -> None:
    """Write the series of one person into a folder: a localizer, the T1, what else was ordered."""
    rng = stream(visit.config, visit.person.index, "series")
    has_t2, has_flair, has_gadolinium, has_reformat = rng.uniform(size=4) < (0.3, 0.15, 0.05, 0.1)
    head = _picture(visit, "t1")
    for series in _localizer(visit, rng):
        _write(visit, folder, series, head)
    if has_t2 or visit.kind == "no_t1":
        _write(visit, folder, _thick(visit, "t2", rng), _picture(visit, "t2"))
    if has_flair:
        _write(visit, folder, _thick(visit, "flair", rng), _picture(visit, "flair"))
    if visit.kind == "no_t1":
        return
    t1 = _t1(visit, stream(visit.config, visit.person.index, "slices"))
    pixels = _write(visit, folder, t1, head)
    if visit.kind == "lost_slice":
        lost = file_name(visit.study, t1.number, len(pixels) // 2)
        (folder / file_name(visit.study, t1.number) / lost).unlink()
    if has_reformat:
        _write_reformat(visit, folder, t1, pixels)
    if has_gadolinium:
        _write(visit, folder, _with_gadolinium(t1), _picture(visit, "gadolinium"))


def head_pose(config: PhantomConfig, person: Person) -> npt.NDArray[np.float64]:
    """Return how a head lies in the scanner.

    Returns
    -------
    float64 array, shape (4, 4)
        Template, RAS mm -> scanner, RAS mm: size (men's heads are larger), then rotation up to
        12 degrees about each axis, then translation up to 15 mm.
    """
    rng = stream(config, person.index, "pose")
    # The template is larger than most heads: its brain has 1.9 l.
    size = (0.97 if person.sex == "M" else 0.93) + rng.uniform(-0.03, 0.03, 3)
    pose = np.eye(4)
    turn = Rotation.from_euler("xyz", rng.uniform(-12, 12, 3), degrees=True)
    pose[:3, :3] = turn.as_matrix() * size
    pose[:3, 3] = rng.uniform(-15, 15, 3)
    return pose


def _centred(
    visit: Visit,
    plane: Plane,
    size: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> Slices:
    """Lay slices as an operator does: around the head, its top well inside, a little off."""
    height = 0 if plane == "axial" else 1
    below_top = max(size[height] * spacing_mm[height] / 2, 75)
    centre = visit.pose @ [0, -14, 106 - below_top, 1]
    turn = Rotation.from_matrix(visit.pose[:3, :3] / np.linalg.norm(visit.pose[:3, :3], axis=0))
    # DICOM axes are LPS: the same rotation with x and y reversed.
    vector = 0.8 * turn.as_rotvec() * [-1, -1, 1] if visit.scanner.tilted else np.zeros(3)
    return lay_slices(
        plane,
        size=size,
        spacing_mm=spacing_mm,
        centre_mm=centre[:3] + rng.uniform(-4, 4, 3),
        tilt=Rotation.from_rotvec(vector),
    )


def _t1(visit: Visit, rng: np.random.Generator) -> Series:
    size, spacing_mm = visit.scanner.t1_size(visit.config.voxel_mm)
    slices = _centred(visit, visit.scanner.plane, size, spacing_mm, rng)
    return Series(number=T1_NUMBER, slices=slices, header=visit.scanner.t1)


def _with_gadolinium(t1: Series) -> Series:
    text = f"{t1.header['SeriesDescription']} +C"
    header = t1.header | {"SeriesDescription": text, "ContrastBolusAgent": "Gadovist"}
    return Series(number=7, slices=t1.slices, header=header)


def _localizer(visit: Visit, rng: np.random.Generator) -> list[Series]:
    """Return three slices in each of three planes: one series."""
    planes: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
    slices = [_centred(visit, p, (3, 128, 128), (20.0, 2.0, 2.0), rng) for p in planes]
    return [Series(number=1, slices=s, header=LOCALIZER, first=3 * i) for i, s in enumerate(slices)]


def _thick(visit: Visit, name: Literal["t2", "flair"], rng: np.random.Generator) -> Series:
    """Return an axial series of thick slices."""
    slices = _centred(visit, "axial", (24, 224, 192), (5.5, 1.05, 1.05), rng)
    number, header = {"t2": (4, T2), "flair": (5, FLAIR)}[name]
    return Series(number=number, slices=slices, header=header)


def _picture(visit: Visit, contrast: str) -> torch.Tensor:
    """Return what lies in the scanner, in template space."""
    if visit.kind == "qa":
        return ball()
    own = brightness_of(visit.config, visit.person)
    brightness, solid = {
        "t1": (own, 1.0),
        "gadolinium": (own, 1.3),
        "t2": (np.array([0.58, 0.44, 1.0]), 0.8),
        "flair": (np.array([0.68, 0.52, 0.1]), 0.7),
    }[contrast]
    blur_mm = draw_site(visit.config, visit.person.site).blur_mm / FWHM
    return head_picture(visit.brain, brightness, solid=solid, blur_mm=blur_mm)


def _write(visit: Visit, folder: Path, series: Series, picture: torch.Tensor) -> Pixels:
    """Scan, store and write one series; return the stored values."""
    slices = series.slices
    index = visit.person.index
    seen = scan_head(picture, visit.brain.shape, visit.pose, slices.to_ras(), slices.size)
    box = [n * s for n, s in zip(slices.size, slices.spacing_mm, strict=True)]
    received = receive(
        seen,
        stream(visit.config, index, f"receiver {series.number} {series.first}"),
        bias=PRESETS[visit.config.preset].bias,
        noise=draw_site(visit.config, visit.person.site).noise,
        box_mm=(box[0], box[1], box[2]),
    )
    gain = np.exp(stream(visit.config, index, "gain").normal(0, 0.2))
    pixels = stored_values((received * gain).numpy(), visit.scanner)
    _store(visit, folder, series, pixels)
    return pixels


def _store(visit: Visit, folder: Path, series: Series, pixels: Pixels) -> None:
    header = header_of(series, visit.scanner, visit.person, visit.identity, study=visit.study)
    place = folder / file_name(visit.study, series.number)
    write_series(place, series, pixels, header, study=visit.study)


def _write_reformat(visit: Visit, folder: Path, t1: Series, pixels: Pixels) -> None:
    """Write every eighth row of the T1 as a slice: the planes that a reader looks at."""
    every, old = 8, t1.slices
    rows = np.ascontiguousarray(pixels[:, ::every].transpose(1, 0, 2))
    slices = Slices(
        size=(rows.shape[0], rows.shape[1], rows.shape[2]),
        spacing_mm=(every * old.spacing_mm[1], old.spacing_mm[0], old.spacing_mm[2]),
        axes=old.axes[[0, 2, 1]],
        first_mm=old.first_mm,
    )
    text = f"{t1.header['SeriesDescription']} MPR"
    header = t1.header | {"SeriesDescription": text, "ImageType": ["DERIVED", "SECONDARY", "MPR"]}
    _store(visit, folder, Series(number=6, slices=slices, header=header), rows)
