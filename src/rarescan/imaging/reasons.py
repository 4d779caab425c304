"""Every reason code: what was done about a file, series, scan or person, and why, in words.

`ACTIONS` and `WORDS` come from one table. A code means one thing and one action wherever it is
found; the words end the sentence "a file, series or scan that ...".
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Action = Literal["fix", "drop", "quarantine"]

_REASONS: Mapping[str, tuple[Action, str]] = {
    # Files, before they belong to a series.
    "NOT_DICOM": ("drop", "is no DICOM file"),
    "UNPACKED": ("drop", "is an archive inside the export; what it holds is read"),
    "ARCHIVE_INSIDE": ("quarantine", "is an archive that is damaged, or packed in an unknown way"),
    "ARCHIVE_NAME": (
        "quarantine",
        "is an archive with names or links that lead outside it",
    ),
    "ARCHIVE_BOMB": ("quarantine", "is an archive that unpacks to far more than it should"),
    "ARCHIVE_ENCRYPTED": (
        "quarantine",
        "is an archive with a password, or an image of a medium",
    ),
    "DICOMDIR": ("drop", "is the index of a medium; the files themselves are read"),
    "DUP_EXACT": ("drop", "is the same file again"),
    "TRUNC_HEADER": (
        "quarantine",
        "ends in its header, or is of a series with such a file",
    ),
    "FILE_SIZE": ("quarantine", "is larger than any MR slice"),
    "PARSER_CRASH": ("quarantine", "made the reader crash or run out of its limits"),
    # Series, from their headers: see `faults.RULES`.
    "NO_PREAMBLE": ("fix", "lost the first 132 bytes"),
    "PREAMBLE_DATA": ("fix", "carried data in the preamble; not copied"),
    "TRAILING_DATA": ("fix", "carried data after the pixels; not copied"),
    "DUP_SOP_HEADER": ("fix", "held an image twice with two headers"),
    "DUP_SLICE": ("fix", "held a slice twice under two names"),
    "SPLIT_ECHO": ("fix", "held several echoes; split"),
    "SPLIT_ORIENTATION": ("fix", "held several orientations; split"),
    "SPLIT_ACQ": ("fix", "held several acquisitions; split"),
    "JOINED": ("fix", "came in several series; put together"),
    "SESSION_MERGED": ("fix", "came in several studies within a day; one session"),
    "SESSION_SPLIT": ("fix", "came in one study with visits of other days; a session of its own"),
    "IOP_ROUNDED": ("fix", "had an orientation a little off the right angle"),
    "INTERPOLATED": ("fix", "has smaller voxels than were measured; the true size is kept"),
    "CHARSET": ("fix", "had names in an unknown alphabet; only pseudonyms come from them"),
    "DATE_ABSURD": ("fix", "had an impossible date or age; not used"),
    "UID_INVALID": ("fix", "had an ill-formed unique identifier; never used as a name"),
    "BAD_VALUE": ("fix", "had header values out of range; counted as absent"),
    "MIXED_PATIENTS": ("quarantine", "belongs to a series or study with two patients"),
    "SOP_CLASS": ("drop", "is no MR image (capture, report, document)"),
    "SYNTHETIC": ("drop", "says of itself that a generator made it"),
    "PHANTOM": ("drop", "shows a test object or an animal"),
    "MOSAIC": ("drop", "is a mosaic of many slices"),
    "LOCALIZER": ("drop", "is a localizer, or has fewer than 20 slices"),
    "MP2RAGE_PART": ("drop", "is an inversion image or the T1 map of MP2RAGE"),
    "DERIVED": ("drop", "was computed from other images"),
    "BURNED_IN": ("drop", "has text burned into the pixels"),
    "GD": ("drop", "was taken with contrast agent"),
    "LOSSY": ("drop", "was compressed with loss"),
    "NOT_T1": ("drop", "is no T1 by its physics"),
    "AGE_RANGE": ("drop", "shows a person younger than the settings allow"),
    "POLYGLOT": ("quarantine", "is a program and an image at once"),
    "TRUNC_PIXELS": ("quarantine", "a file ends within its pixels, or they cannot be decoded"),
    "NO_IDENTITY": ("quarantine", "has no usable patient ID, or one with two birth dates"),
    "NO_DATE": ("quarantine", "has no valid date at all"),
    "ENHANCED_UNSUPPORTED": ("quarantine", "holds frames that are not one volume"),
    "COLOUR": ("quarantine", "is in colour"),
    "PIXEL_LAYOUT": ("quarantine", "has an unknown pixel layout"),
    "DUP_SOP_PIXELS": ("quarantine", "holds different images under one identifier"),
    "NO_SPACING": ("quarantine", "does not say where its slices and pixels lie"),
    "IOP_INVALID": ("quarantine", "has an impossible orientation"),
    "LATERALITY": ("quarantine", "contradicts itself about left and right"),
    "DUP_POSITION": ("quarantine", "holds different slices in one place"),
    "SHEAR": ("quarantine", "is sheared: slices are shifted sideways"),
    "MISSING_SLICE": ("quarantine", "misses slices in the middle"),
    "SPACING": ("quarantine", "has uneven distances between slices"),
    "COUNT_MISMATCH": ("quarantine", "has fewer slices than its numbers promise"),
    "COVERAGE": ("quarantine", "covers less than 140 mm"),
    "NOT_HEAD": (
        "quarantine",
        "shows no head, or none that fits the template",
    ),
    "NO_PHYSICS": ("quarantine", "does not say how it was made: a person must confirm it"),
    "REVIEW": ("quarantine", "may be a T1: a person must confirm it"),
    # Pixels, once they are decoded.
    "NO_DECODER": ("quarantine", "the pixels are encoded in a way that no decoder is here for"),
    "PIXELS_DEAD": ("quarantine", "the pixels are constant, saturated or mere noise"),
    "BURNED_IN_PIXELS": ("quarantine", "seems to have text drawn into its slices"),
    "MONOCHROME1": ("fix", "bright and dark were exchanged"),
    "RESCALE_VARIES": ("fix", "each slice had its own scale; it was applied"),
    "PADDING": ("fix", "padding outside the image became 0"),
    # Persons, labels, and one scan a session.
    "UNLABELLED": ("quarantine", "the labels do not name this person"),
    "LABEL_WITHOUT_SCAN": ("drop", "the labels name a person without an accepted scan"),
    "SAME_PIXELS_TWO_PEOPLE": ("quarantine", "the same pixels stand under two persons"),
    "RUNNER_UP": ("drop", "another T1 of the session is better"),
    "DUP_STACK": ("drop", "the same pixels are in the cohort already"),
    "NAME_DIFFERS": ("quarantine", "stands under one number with two names: confirm the person"),
    "MAPPED": ("fix", "belongs to the person whom the labels name for its accession"),
    "CONFIRMED": ("fix", "was confirmed to be a T1 by a person"),
    "ERASED": ("drop", "shows a person who was erased"),
    "DIAGNOSIS_CHANGES": ("quarantine", "has another diagnosis than the person's first session"),
    # Volumes that were no DICOM.
    "FILE_MISSING": ("quarantine", "is named in the table and not there"),
    "UNREADABLE": ("quarantine", "cannot be read as NIfTI"),
    "NOT_3D": ("quarantine", "is no volume of three dimensions"),
    "AFFINE_INVALID": ("quarantine", "has an impossible geometry"),
    # Pictures and clips: see `frames` and `pictures`.
    "CLIP_UNREADABLE": ("quarantine", "is no picture or clip that can be decoded"),
    "CLIP_TRUNCATED": ("quarantine", "ends before the last frame that it promises"),
    "CLIP_EMPTY": ("quarantine", "holds no frame"),
    "CLIP_SIZE": ("quarantine", "has more pixels than any picture, or takes too much memory"),
    "NOT_2D": ("quarantine", "holds volumes, not pictures"),
    "COLOUR_FLOW": ("drop", "shows colour Doppler, of which a grey picture keeps nothing"),
    "OTHER_MODALITY": ("drop", "was taken by another modality than the settings name"),
    "NO_TISSUE": ("quarantine", "shows no region of tissue in two dimensions"),
    "REGION_UNITS": ("fix", "gives its scale in other units than centimetres; counted as unknown"),
    "REGION_OUTSIDE": (
        "fix",
        "gives a region of another size of picture; region and scale count as unknown",
    ),
    "PLANE_MISSING": ("quarantine", "is of a visit of which not every plane is there"),
    "PLANE_UNUSED": ("drop", "shows a plane that is not asked for, or that was taken already"),
    # Scans, once they lie on the template: see `prepare`.
    "READ_FAILED": (
        "quarantine",
        "is damaged, not three-dimensional or without geometry",
    ),
    "NO_BRAIN": ("quarantine", "no brain was found"),
    "STRIP_FAILED": ("quarantine", "the brain extraction command failed or took too long"),
    "STRIP_MASK": (
        "quarantine",
        "has a mask from the strip command that is no brain",
    ),
    "BRAIN_VOLUME": ("quarantine", "the brain mask has less than 800 ml or more than 2200 ml"),
    "CONTRAST": (
        "quarantine",
        "has not the order of brightness of a T1 image",
    ),
    "WORKER_DIED": ("quarantine", "made the program that prepares scans stop"),
}
ACTIONS: Mapping[str, Action] = {code: action for code, (action, _) in _REASONS.items()}
"""Reason code -> what is done: repaired and recorded, not wanted and counted, or set apart."""
WORDS: Mapping[str, str] = {code: words for code, (_, words) in _REASONS.items()}
"""Reason code -> what it means."""


def count_codes(codes: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return `codes` (reason code -> how often) and `reasons` (code -> words) for a cohort."""
    counts = dict(sorted(Counter(codes).items()))
    return {"codes": counts, "reasons": {code: WORDS[code] for code in counts}}
