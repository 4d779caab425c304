"""Four scanners of three makers: what each writes into headers, and how it lays its slices.

`SCANNERS` has one scanner a site, `Slices` the geometry of one series. Repetition and inversion
times mean different things to different makers: Siemens counts TR from inversion to inversion,
GE and Philips from excitation to excitation, and Philips writes no TI at all.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

Plane = Literal["sagittal", "axial", "coronal"]
Header = dict[str, Any]
"""DICOM keyword -> value."""

# Rows of a matrix: direction of increasing column index, of increasing row index, of slices, LPS.
_AXES: dict[Plane, list[list[int]]] = {
    "sagittal": [[0, 1, 0], [0, 0, -1], [-1, 0, 0]],
    "axial": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "coronal": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Slices:
    """How one series lies in space; everything in LPS millimetres, as DICOM has it."""

    size: tuple[int, int, int]
    """Slices, rows, columns."""
    spacing_mm: tuple[float, float, float]
    """Between slices, rows and columns."""
    axes: npt.NDArray[np.float64]
    """3 x 3: unit vectors of increasing column index, row index and slice index."""
    first_mm: npt.NDArray[np.float64]
    """Centre of the first voxel of the first slice."""

    def position_mm(self, index: int) -> npt.NDArray[np.float64]:
        """Return the centre of the first voxel of one slice."""
        place: npt.NDArray[np.float64] = self.first_mm + index * self.spacing_mm[0] * self.axes[2]
        return place

    def to_ras(self) -> npt.NDArray[np.float64]:
        """Return 4 x 4: (slice, row, column) -> RAS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = _LPS_TO_RAS @ (self.axes[[2, 1, 0]].T * self.spacing_mm)
        matrix[:3, 3] = _LPS_TO_RAS @ self.first_mm
        return matrix


def lay_slices(
    plane: Plane,
    *,
    size: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    centre_mm: npt.NDArray[np.float64],
    tilt: Rotation,
) -> Slices:
    """Return slices around a point (RAS mm), turned away from the scanner's axes by `tilt`."""
    axes: npt.NDArray[np.float64] = tilt.apply(np.array(_AXES[plane], dtype=np.float64)).round(9)
    steps = axes[[2, 1, 0]].T * spacing_mm
    half = (np.array(size) - 1) / 2
    first: npt.NDArray[np.float64] = _LPS_TO_RAS @ centre_mm - steps @ half
    # Headers hold four decimals of a position; the image is made for what they hold.
    return Slices(
        size=size,
        spacing_mm=spacing_mm,
        axes=axes,
        first_mm=first.round(4),
    )


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """One scanner and its habits."""

    plane: Plane
    """In which it cuts the T1."""
    fraction: tuple[float, float, float]
    """Spacing of slices, rows and columns, in units of the largest voxel edge asked for."""
    field_mm: tuple[float, float, float]
    """Extent over slices, rows and columns."""
    tilted: bool
    """Whether the operator turns the slices along the head."""
    implicit: bool
    """Transfer syntax: implicit or explicit VR, little endian."""
    bits: int
    full_scale: float
    """Stored or, with a slope, real value of brightness 1."""
    slope: float | None
    device: Header
    t1: Header
    private: tuple[tuple[int, str, tuple[tuple[int, str, Any], ...]], ...] = ()
    """Group, creator and (element, VR, value); a value `SLICES` is the number of slices."""

    def t1_size(self, voxel_mm: float) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
        """Return size and spacing of a T1 with voxels up to `voxel_mm`."""
        spacing = tuple(round(f * voxel_mm, 4) for f in self.fraction)
        # Even numbers, as every reconstruction makes them.
        size = [2 * math.ceil(e / s / 2) for e, s in zip(self.field_mm, spacing, strict=True)]
        return (size[0], size[1], size[2]), (spacing[0], spacing[1], spacing[2])


SLICES = "number of slices"

_MPRAGE: Header = {
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"],
    "ScanningSequence": ["GR", "IR"],
    "SequenceVariant": ["SK", "SP", "MP"],
    "ScanOptions": "IR",
    "MRAcquisitionType": "3D",
    "SequenceName": "*tfl3d1_16ns",
    "RepetitionTime": 2300,
    "EchoTime": 2.98,
    "InversionTime": 900,
    "FlipAngle": 9,
    "EchoTrainLength": 1,
    "PixelBandwidth": 240,
    "ProtocolName": "t1_mprage_sag_p2",
    "SeriesDescription": "t1_mprage_sag_p2",
}
_SIEMENS_PRIVATE = (
    (0x0019, "SIEMENS MR HEADER", ((0x08, "CS", "IMAGE NUM 4"), (0x18, "IS", "6500"))),
    (0x0051, "SIEMENS MR HEADER", ((0x08, "CS", "IMAGE NUM 4"), (0x0F, "LO", "HEA;HEP"))),
)

LOCALIZER: Header = {
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM", "LOCALIZER"],
    "ScanningSequence": "GR",
    "SequenceVariant": "SP",
    "MRAcquisitionType": "2D",
    "RepetitionTime": 8.6,
    "EchoTime": 4.0,
    "FlipAngle": 20,
    "ProtocolName": "localizer",
    "SeriesDescription": "localizer",
}
T2: Header = {
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
    "ScanningSequence": "SE",
    "SequenceVariant": "SK",
    "MRAcquisitionType": "2D",
    "RepetitionTime": 4500,
    "EchoTime": 98,
    "FlipAngle": 150,
    "EchoTrainLength": 15,
    "ProtocolName": "t2_tse_tra",
    "SeriesDescription": "t2_tse_tra",
}
FLAIR: Header = T2 | {
    "ScanningSequence": ["SE", "IR"],
    "RepetitionTime": 9000,
    "EchoTime": 117,
    "InversionTime": 2500,
    "ProtocolName": "t2_flair_tra",
    "SeriesDescription": "t2_flair_tra",
}

SCANNERS: dict[str, Scanner] = {
    "A": Scanner(
        plane="sagittal",
        fraction=(1.0, 1.0, 1.0),
        field_mm=(192, 252, 240),
        tilted=False,
        implicit=False,
        bits=12,
        full_scale=420,
        slope=None,
        device={
            "Manufacturer": "SIEMENS",
            "ManufacturerModelName": "Prisma",
            "MagneticFieldStrength": 3,
            "SoftwareVersions": "syngo MR E11",
            "InstitutionName": "Klinikum Neustadt",
            "StationName": "AWP45557",
            "DeviceSerialNumber": "45557",
        },
        t1=_MPRAGE,
        private=_SIEMENS_PRIVATE,
    ),
    "B": Scanner(
        plane="axial",
        fraction=(1.0, 0.9375, 0.9375),
        field_mm=(200, 240, 204),
        tilted=True,
        implicit=False,
        bits=16,
        full_scale=3100,
        slope=None,
        device={
            "Manufacturer": "GE MEDICAL SYSTEMS",
            "ManufacturerModelName": "DISCOVERY MR750",
            "MagneticFieldStrength": 3,
            "SoftwareVersions": ["27", "LX", "MR Software release:DV26.0_R03"],
            "InstitutionName": "Newtown General Hospital",
            "StationName": "NGHMR2",
            "DeviceSerialNumber": "000000031234MR2",
        },
        t1={
            "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
            "ScanningSequence": "GR",
            "SequenceVariant": ["SS", "SP", "SK"],
            "ScanOptions": ["FAST_GEMS", "EDR_GEMS"],
            "MRAcquisitionType": "3D",
            "RepetitionTime": 7.34,
            "EchoTime": 3.03,
            "InversionTime": 400,
            "FlipAngle": 11,
            "EchoTrainLength": 1,
            "PixelBandwidth": 244.141,
            "ProtocolName": "Head BRAVO",
            "SeriesDescription": "Ax 3D T1 BRAVO",
        },
        private=(
            (0x0009, "GEMS_IDEN_01", ((0x02, "SH", "NGH"), (0x04, "SH", "SIGNA"))),
            (0x0019, "GEMS_ACQU_01", ((0x9C, "LO", "EFGRE3D"),)),
            (0x0021, "GEMS_RELA_01", ((0x4F, "SS", SLICES),)),
        ),
    ),
    "C": Scanner(
        plane="coronal",
        fraction=(1.0, 0.96, 0.96),
        field_mm=(226, 236, 204),
        tilted=True,
        implicit=True,
        bits=12,
        full_scale=1.9e3,
        slope=1.2471,
        device={
            "Manufacturer": "Philips Medical Systems",
            "ManufacturerModelName": "Achieva",
            "MagneticFieldStrength": 3,
            "SoftwareVersions": ["3.2.3", "3.2.3.5"],
            "InstitutionName": "Ospedale di Villanova",
            "StationName": "ACHIEVA3",
            "DeviceSerialNumber": "17122",
        },
        t1={
            "ImageType": ["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"],
            "ScanningSequence": "GR",
            "SequenceVariant": "MP",
            "ScanOptions": "FC",
            "MRAcquisitionType": "3D",
            "RepetitionTime": 8.06,
            "EchoTime": 3.69,
            "FlipAngle": 8,
            "EchoTrainLength": 205,
            "PixelBandwidth": 191,
            "ProtocolName": "T1W_3D_TFE_cor",
            "SeriesDescription": "T1W_3D_TFE_cor",
        },
        private=(
            (0x2001, "Philips Imaging DD 001", ((0x18, "SL", SLICES),)),
            (0x2005, "Philips MR Imaging DD 001", ((0x0D, "FL", 0.0), (0x0E, "FL", 0.00314))),
        ),
    ),
    "D": Scanner(
        plane="sagittal",
        fraction=(1.0, 0.9, 0.9),
        field_mm=(186, 244, 238),
        tilted=True,
        implicit=True,
        bits=12,
        full_scale=260,
        slope=None,
        device={
            "Manufacturer": "SIEMENS",
            "ManufacturerModelName": "Avanto",
            "MagneticFieldStrength": 1.5,
            "SoftwareVersions": "syngo MR B17",
            "InstitutionName": "Hôpital de Villeneuve",
            "StationName": "MRC25601",
            "DeviceSerialNumber": "25601",
        },
        t1=_MPRAGE | {"RepetitionTime": 2130, "EchoTime": 3.93, "InversionTime": 1100},
        private=_SIEMENS_PRIVATE,
    ),
}
"""Site -> its scanner."""
