"""Any folder of NIfTI, PNG, JPEG or DICOM files, or a prepared cohort, read one image at a time.

`read_images` is the way in, `PYRAMID` and `REGIONS` look at what it yields. Volumes are turned to
RAS and divided by their own 99.5th percentile, pictures by the largest number of their format;
nothing is resampled, so all images must have one shape. Persons come from BIDS names (`sub-...`),
DICOM patients or the cohort; otherwise one file is one person, which the caller is told.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rarescan.cohort.contracts import FloatArray, Grid, brain_grid
from rarescan.cohort.store import VOLUMES, open_cohort, tables
from rarescan.errors import GridMismatchError, InputError

_PICTURES = (".png", ".jpg", ".jpeg")
_NOT_IMAGES = ("_mask", "_dseg", "_probseg")
_BRIGHT_PERCENTILE = 99.5
_LEVELS = 4
_QUIET = 0.01
_BIDS = "persons from names (sub-...)"
_FILE = "one file = one person: no name holds sub-..."
_COHORT = "persons of the cohort"
_PATIENT, _SERIES = "persons from DICOM patients", "one DICOM series = one person: no patient"
Affine = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of one person."""

    values: FloatArray
    """Shape (x, y) or (x, y, z), 0 to 1."""
    spacing_mm: tuple[float, ...]
    """Edge of a voxel along each axis; empty for pictures."""
    person: str
    person_rule: str
    """How the person was told from others."""

    @property
    def kind(self) -> str:
        """What must agree between images that are compared, in words."""
        shape = " x ".join(str(n) for n in self.values.shape)
        if not self.spacing_mm:
            return f"{shape} pixels"
        return f"{shape} voxels of {' x '.join(f'{s:g}' for s in self.spacing_mm)} mm"


def read_images(folder: Path, *, name: str = "A", like: str = "") -> Iterator[Image]:
    """Yield the images below a folder, in the order of their names.

    Parameters
    ----------
    folder : Path
        Images in any depth, or a cohort that `rarescan prepare` or `generate` wrote.
    name : str
        What messages call the folder.
    like : str
        `Image.kind` of the images that these are compared with; their own first one without.

    Raises
    ------
    InputError
        No image, an unreadable one, NaN, or pictures among volumes.
    GridMismatchError
        Images of several shapes or voxel sizes.
    """
    number = 0
    for image in _images(folder, name):
        number += 1
        if not np.isfinite(image.values).all():
            raise InputError(
                f"Image {number} of '{name}' (in the order of names) holds NaN or infinity.",
                remedy="Repair it or leave it out.",
            )
        like = like or image.kind
        _require_like(image.kind, like, name)
        yield image
    if not number:
        raise InputError(
            f"'{name}' holds no NIfTI, PNG, JPEG or DICOM image.", remedy="Name another folder."
        )


def _require_like(kind: str, like: str, name: str) -> None:
    if kind == like:
        return
    flat = [text.split(" of ")[0].count(" x ") == 1 for text in (kind, like)]
    if flat[0] != flat[1]:
        raise InputError(
            f"'{name}' holds 2D images ({kind if flat[0] else like}), and 3D volumes "
            f"({like if flat[0] else kind}) stand against them.",
            remedy="Compare volumes with volumes, or the same slice of both.",
        )
    raise GridMismatchError(
        f"'{name}' holds images of {kind}, not of {like}.",
        remedy="Bring all images to one shape and voxel size first, for example with "
        "`rarescan prepare`.",
    )


def _images(folder: Path, name: str) -> Iterator[Image]:
    if (tables(folder) / VOLUMES).is_file():
        yield from _of_cohort(folder)
        return
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not _hidden(p, folder))
    loose = []
    for path in paths:
        suffixes = path.name.lower()
        if suffixes.endswith((".nii", ".nii.gz")):
            if not any(mark in suffixes for mark in _NOT_IMAGES):
                yield _of_file(path, folder, name)
        elif suffixes.endswith(_PICTURES):
            yield _of_file(path, folder, name)
        elif _is_dicom(path):
            loose.append(path)
    if loose:
        yield from _of_dicom(loose, name)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _of_cohort(folder: Path) -> Iterator[Image]:
    cohort = open_cohort(folder)
    volumes = np.load(tables(folder) / VOLUMES, mmap_mode="r")
    spacing = (cohort.grid.spacing_mm,) * 3 if cohort.grid else ()
    for scan, volume in zip(cohort.scans, volumes, strict=True):
        yield Image(
            values=_scaled(volume),
            spacing_mm=spacing,
            person=scan.person_id,
            person_rule=_COHORT,
        )


def _scaled(volume: npt.NDArray[Any]) -> FloatArray:
    """Return values divided by the brightness that 0.5 % of what is not background exceed."""
    values = np.asarray(volume, np.float32)
    inside = values[values > 0]
    bright = float(np.percentile(inside, _BRIGHT_PERCENTILE)) if inside.size else 1.0
    scaled: FloatArray = np.clip(values / np.float32(bright), 0, 1)
    return scaled


def _person(path: Path, folder: Path, rule: str) -> tuple[str, str]:
    """Return the person of a file and how it is known."""
    for part in path.relative_to(folder).parts:
        for entity in part.split(".")[0].split("_"):
            if entity.startswith("sub-"):
                return entity, _BIDS
    return str(path.relative_to(folder)), rule


def _of_file(path: Path, folder: Path, name: str) -> Image:
    person, rule = _person(path, folder, _FILE)
    try:
        picture = path.suffix.lower() in _PICTURES
        values, spacing = _picture(path) if picture else _nifti(path)
    except Exception as error:  # decoders fail on damaged files with any exception
        raise InputError(
            f"An image of '{name}' cannot be read.",
            remedy="Look for damaged or empty files in the folder.",
        ) from error
    return Image(values=values, spacing_mm=spacing, person=person, person_rule=rule)


def _picture(path: Path) -> tuple[FloatArray, tuple[float, ...]]:
    from PIL import Image as Pillow

    with Pillow.open(path) as opened:
        deep = opened.mode.startswith("I")
        grey = np.asarray(opened if deep else opened.convert("L"), np.float32)
    return np.ascontiguousarray(grey.T) / np.float32(65535 if deep else 255), ()


def _nifti(path: Path) -> tuple[FloatArray, tuple[float, ...]]:
    import nibabel as nib

    loaded: Any = nib.Nifti1Image.from_filename(path)
    turned = nib.funcs.as_closest_canonical(loaded)
    values = np.squeeze(np.asarray(turned.dataobj, np.float32))
    spacing = tuple(round(float(s), 2) for s in turned.header.get_zooms()[: values.ndim])
    return _scaled(values), spacing


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _of_dicom(paths: list[Path], name: str) -> Iterator[Image]:
    import pydicom

    series: dict[str, list[tuple[float, Path]]] = defaultdict(list)
    patients: dict[str, str] = {}
    for path in paths:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except Exception as error:  # pydicom fails on hostile bytes with any exception
            raise InputError(
                f"A DICOM file of '{name}' cannot be read.", remedy="Remove damaged files."
            ) from error
        uid = str(header.get("SeriesInstanceUID", path))
        series[uid].append((_place(header), path))
        patients[uid] = str(header.get("PatientID", "") or "")
    for uid in sorted(series, key=lambda one: min(p for _, p in series[one])):
        values, spacing = _stack([path for _, path in sorted(series[uid])], name)
        person, rule = (patients[uid], _PATIENT) if patients[uid] else (uid, _SERIES)
        yield Image(values=values, spacing_mm=spacing, person=person, person_rule=rule)


def _place(header: Any) -> float:
    """Return where a slice lies along the normal of its plane, in mm."""
    position, axes = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    if not position or not axes:
        return float(header.get("InstanceNumber", 0) or 0)
    normal = np.cross(np.asarray(axes[:3], float), np.asarray(axes[3:], float))
    return float(normal @ np.asarray(position, float))


def _stack(paths: list[Path], name: str) -> tuple[FloatArray, tuple[float, ...]]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage([str(path) for path in paths])
    except RuntimeError as error:
        raise InputError(
            f"A DICOM series of '{name}' cannot be read as one stack of equal slices.",
            remedy="Convert it to NIfTI first, or run `rarescan ingest` on the export.",
        ) from error
    if image.GetDepth() > 1:
        image = sitk.DICOMOrient(image, "RAS")
    values = np.squeeze(sitk.GetArrayFromImage(image).T)
    spacing = tuple(round(float(s), 2) for s in image.GetSpacing()[: values.ndim])
    return _scaled(values), spacing


def pyramid(image: FloatArray) -> npt.NDArray[np.float64]:
    """Return mean grey and the logarithm of mean absolute detail at four scales, by place.

    Parameters
    ----------
    image : float32 array, shape (x, y) or (x, y, z), 0 to 1
        Cut into 8 x 8 or 4 x 4 x 4 places; detail of a scale is what its 2-fold average loses.
    """
    places = 8 if image.ndim == 2 else 4
    found = [_by_place(image, places)]
    for _ in range(_LEVELS):
        if min(image.shape) < 2 * places:
            break
        even = image[tuple(slice(n // 2 * 2) for n in image.shape)]
        pairs = even.reshape([n for size in even.shape for n in (size // 2, 2)])
        image = pairs.mean(axis=tuple(range(1, pairs.ndim, 2)))
        lost = np.abs(pairs - np.expand_dims(image, tuple(range(1, pairs.ndim, 2))))
        found.append(np.log(_QUIET + _by_place(lost.reshape(even.shape), places)))
    return np.concatenate(found)


def _by_place(image: FloatArray, places: int) -> npt.NDArray[np.float64]:
    """Return the mean of the image in each place, in order."""
    sums = image.astype(np.float64)
    for axis, size in enumerate(image.shape):
        starts = np.unique(np.linspace(0, size, places + 1).astype(np.intp)[:-1])
        sizes = np.diff([*starts, size])
        sums = np.add.reduceat(sums, starts, axis=axis)
        sums /= sizes.reshape([-1 if a == axis else 1 for a in range(image.ndim)])
    return sums.ravel()


def region_vector(image: FloatArray) -> npt.NDArray[np.float64]:
    """Return tissue shares, regions and asymmetries of a volume on a brain grid."""
    from rarescan.evaluation.measures import describe

    vector: npt.NDArray[np.float64] = describe(image[None], _grid_of(image))[0]
    return vector


def _grid_of(image: FloatArray) -> Grid:
    for spacing_mm in (1.0, 2.0, 4.0, 8.0):
        if brain_grid(spacing_mm).shape == image.shape:
            return brain_grid(spacing_mm)
    raise InputError(
        f"Images of the shape {image.shape} are not on the brain grid that the regions need.",
        remedy="Run `rarescan prepare` first, or use the extractor 'pyramid'.",
    )
