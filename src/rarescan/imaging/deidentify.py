"""What may leave: values that were parsed, checked and written anew; no free text survives.

`sidecar` is the way in. It builds the JSON beside a scan from an allow-list; nothing is copied
from the source, so there is nothing to remove. Not allowed, among others: descriptions, protocol
and sequence names, software versions, serial numbers, frequencies, any sequence, any private
element, dates (they are shifted elsewhere) and UIDs.
"""

from typing import Any

from rarescan.imaging.header import Header
from rarescan.imaging.select import Gadolinium, gadolinium

_MANUFACTURERS = {
    "siemens": "Siemens",
    "ge ": "GE",
    "general electric": "GE",
    "philips": "Philips",
    "canon": "Canon",
    "toshiba": "Canon",
    "uih": "UIH",
    "united imaging": "UIH",
    "hitachi": "Hitachi",
}
_MODELS = {
    *("Aera", "Allegra", "Amira", "Avanto", "Avanto_fit", "Biograph_mMR", "Cima.X", "Connectom"),
    *("Espree", "Lumina", "MAGNETOM Lumina", "MAGNETOM Sola", "MAGNETOM Vida", "Prisma"),
    *("Prisma_fit", "Skyra", "Skyra_fit", "Sola", "Sonata", "Spectra", "Symphony", "Terra"),
    *("Trio", "TrioTim", "Verio", "Vida"),
    *("DISCOVERY MR450", "DISCOVERY MR750", "DISCOVERY MR750w", "GENESIS_SIGNA"),
    *("Optima MR450w", "SIGNA Architect", "SIGNA Artist", "SIGNA EXCITE", "SIGNA HDx"),
    *("SIGNA HDxt", "SIGNA PET/MR", "SIGNA Pioneer", "SIGNA Premier", "SIGNA UHP"),
    *("Signa HDx", "Signa HDxt"),
    *("Achieva", "Achieva dStream", "Gyroscan Intera", "Ingenia", "Ingenia Ambition X"),
    *("Ingenia CX", "Ingenia Elition X", "Intera", "Intera Achieva", "MR 7700"),
    *("Titan", "Vantage Elan", "Vantage Galan 3T", "Vantage Orian", "Vantage Titan"),
    *("ECHELON", "Oasis", "uMR 560", "uMR 570", "uMR 770", "uMR 780", "uMR 790", "uMR 880"),
}
_IMAGE_TYPES = {
    *("ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "M", "P", "ND", "NORM", "DIS2D", "DIS3D"),
    *("M_FFE", "FFE", "M_IR", "UNI", "OTHER", "MEAN"),
}
_SEQUENCES = {"SE", "IR", "GR", "EP", "RM"}
_VARIANTS = {"SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "NONE"}


def maker(header: Header) -> str:
    """Return the scanner's manufacturer, one of eight words."""
    name = f"{(header.manufacturer or '').lower()} "
    return next((word for start, word in _MANUFACTURERS.items() if name.startswith(start)), "Other")


def sidecar(header: Header, given: Gadolinium | None = None) -> dict[str, Any]:
    """Return the JSON beside a scan in BIDS terms: times in seconds, 6 significant digits.

    Parameters
    ----------
    header : Header
        The header of the stack's first slice.
    given : {"yes", "no", "unknown"}, optional
        Whether contrast agent was given, where the whole session was asked; else the header is.

    Returns
    -------
    dict
        Allow-listed values only; absent ones are left out.
    """
    values = {
        "Modality": "MR",
        "Manufacturer": maker(header),
        "ManufacturersModelName": header.model if header.model in _MODELS else None,
        "MagneticFieldStrength": _digits(header.field_strength_t),
        "ImageType": [word for word in header.image_type if word in _IMAGE_TYPES],
        "MRAcquisitionType": header.acquisition_type,
        "ScanningSequence": [word for word in header.scanning_sequence if word in _SEQUENCES],
        "SequenceVariant": [word for word in header.sequence_variant if word in _VARIANTS],
        "RepetitionTime": _digits(header.repetition_time_ms, 1e-3),
        "EchoTime": _digits(header.echo_time_ms, 1e-3),
        "InversionTime": _digits(header.inversion_time_ms, 1e-3),
        "FlipAngle": _digits(header.flip_angle_deg),
        "SliceThickness": _digits(header.slice_thickness_mm),
        "PixelBandwidth": _digits(header.bandwidth_hz),
        "AcquisitionVoxelSize": [_digits(edge) for edge in header.acquired_mm or ()],
        "LossyImageCompression": "01" if header.is_lossy else None,
        "Gadolinium": given or gadolinium(header),
    }
    # A vendor that does not tell a time writes 0, which BIDS refuses.
    return {name: v for name, v in values.items() if v not in (None, [], 0)}


def _digits(value: float | None, factor: float = 1.0) -> float | None:
    return None if value is None else float(f"{value * factor:.6g}")
