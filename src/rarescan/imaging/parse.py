"""Read the header of one DICOM file from its bytes: the allow-list, and nothing else.

`read_header` is the way in; it runs in child processes with limits (`limit_this_process`). It
walks the top-level elements itself, because the general readers return a partial data set
silently when a header is cut off, follow nested sequences as deep as they go, and spend most of
their time on private elements. Every value is parsed to a Python type and checked; what does not
parse counts as absent and its name stands in `Header.bad`. pydicom is asked, once the walk has
found a file whole, for what is rare: other alphabets, and the frames of Enhanced MR images. It is
imported there, because a child that needs neither starts twice as fast without it.
"""

import hashlib
import logging
import multiprocessing
import resource
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, Literal

from rarescan.imaging.header import (
    ENHANCED_MR,
    EXPLICIT,
    PARSERS,
    Header,
    Parser,
    binary,
    count,
    integer,
    number,
    real,
    shorts,
    words,
)

IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN)

_PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_ENDS = (0xFFFEE00D, 0xFFFEE0DD)
_LONG_FORM = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_LONGEST_VALUE = 4096
_LARGEST_INFLATED = 128 << 20
_MEDIUM = b"1.2.840.10008.1.3.10"
_EXECUTABLES = (b"MZ", b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
_BINARY: tuple[Parser, ...] = (binary, count, real, shorts)
_NAMES = (0x00100010, 0x00100020, 0x00100021, 0x00080080)
_NAME_DELIMITERS = {ord("\\"), ord("^"), ord("=")}
# Elements of the functional groups of Enhanced MR images, DICOM PS3.3 C.7.6.16.2 and C.8.13.5.
_OF_FRAMES: dict[int, tuple[str, Parser]] = {
    **{tag: PARSERS[tag] for tag in (0x00200032, 0x00200037, 0x00280030, 0x00180050, 0x00180080)},
    **{tag: PARSERS[tag] for tag in (0x00180095, 0x00181314, 0x00089208, 0x00281052, 0x00281053)},
    0x00089007: ("image_type", words),
    0x00189009: ("inverted", words),
    0x00189079: ("inversion_time_ms", number(0, 1e5)),
    0x00189082: ("echo_time_ms", number(0, 1e4)),
    0x00189087: ("b_value", number(0, 1e6)),
    0x00209128: ("temporal_position", integer),
    0x00209156: ("acquisition_number", integer),
}
_ECHOES = {"GRADIENT": ("GR",), "SPIN": ("SE",), "BOTH": ("SE", "GR")}


def limit_this_process(memory_mib: int, *, cpu_seconds: int = 120, writes: bool = False) -> None:
    """Limit what a child process may take from now on; the first process is never limited."""
    if multiprocessing.parent_process() is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + cpu_seconds)
    _limit(resource.RLIMIT_CORE, 0)
    if not _limited():
        with open("/proc/self/statm") as stream:  # noqa: PTH123 - no Path: not a stored file
            in_use = int(stream.read().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, in_use + (memory_mib << 20))
    if not writes:
        _limit(resource.RLIMIT_FSIZE, 0)


def _limited() -> bool:
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _limit(kind: int, soft: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def read_header(data: bytes) -> Header | str:
    """Return the header of one file.

    Parameters
    ----------
    data : bytes
        The whole file.

    Returns
    -------
    Header or str
        A reason code (`NOT_DICOM`, `TRUNC_HEADER`, ...) where the bytes do not even say to which
        series they belong.
    """
    start = _find_start(data)
    if isinstance(start, str):
        return start
    offset, syntax, faults = start
    if syntax == DEFLATED:
        inflated = _inflate(memoryview(data)[offset:])
        if inflated is None:
            return "TRUNC_HEADER"
        body, offset = inflated, 0
    else:
        body = data
    found, end = _walk(body, offset, syntax, stop=_PIXEL_DATA)
    values = _parse(found, syntax == BIG_ENDIAN)
    if values.get("sop_class") is None and values.get("series_uid") is None:
        return "DICOMDIR" if _MEDIUM in data[:1024] else "TRUNC_HEADER"
    alphabet = _decode_names(found, values)
    pixels = _find_pixels(body, end, syntax, values)
    values |= pixels | {"faults": (*faults, *alphabet, *pixels["faults"])}
    if syntax == DEFLATED:
        values["pixel_offset"] = -1
    if values.get("sop_class") == ENHANCED_MR and not pixels["faults"]:
        values |= _of_frames(data, values.get("frames", 1))
    return Header(**values, syntax=syntax, sha256=hashlib.sha256(data).hexdigest())


def _find_start(data: bytes) -> tuple[int, str, tuple[str, ...]] | str:
    """Return where the data set begins, its transfer syntax, and what is odd so far."""
    if not data:
        return "TRUNC_HEADER"
    if data[128:132] == b"DICM":
        offset, faults = 132, _preamble_faults(data[:128])
    elif _looks_bare(data):
        offset, faults = 0, ("NO_PREAMBLE",)
    else:
        return "ARCHIVE_INSIDE" if data[:4] in (b"PK\3\4", b"7z\xbc\xaf") else "NOT_DICOM"
    if data[offset : offset + 2] != b"\2\0":
        explicit = data[offset + 4 : offset + 6].isalpha()
        return offset, EXPLICIT if explicit else IMPLICIT, faults
    meta, end = _walk(data, offset, EXPLICIT, stop=0x00030000)
    syntax = meta.get(0x00020010, b"").decode("latin-1").strip(" \0")
    return (end, syntax, faults) if end > 0 and syntax else "TRUNC_HEADER"


def _preamble_faults(preamble: bytes) -> tuple[str, ...]:
    if preamble.startswith(_EXECUTABLES):
        return ("POLYGLOT",)
    return ("PREAMBLE_DATA",) if any(preamble) else ()


def _looks_bare(data: bytes) -> bool:
    """Return whether the bytes begin like a data set whose preamble was lost."""
    if len(data) < 16 or data[:2] not in (b"\2\0", b"\x08\0") or data[3] != 0:
        return False
    length = struct.unpack_from("<I", data, 4)[0]
    return (data[4:6].isalpha() and data[4:6].isupper()) or length < 128


def _inflate(data: memoryview) -> bytes | None:
    inflater = zlib.decompressobj(-15)
    try:
        body = inflater.decompress(data, _LARGEST_INFLATED)
    except zlib.error:
        return None
    return None if inflater.unconsumed_tail else body


def _walk(data: bytes, position: int, syntax: str, *, stop: int) -> tuple[dict[int, bytes], int]:
    """Return the wanted top-level elements, and where the first tag from `stop` on lies (or -1).

    Sequences of undefined length are followed with a list instead of recursion; a sequence
    inside an element of unknown VR is in implicit VR (DICOM PS3.5 section 6.2.2).
    """
    explicit, big = syntax != IMPLICIT, syntax == BIG_ENDIAN
    short, long = struct.Struct(">HH2sH" if big else "<HH2sH"), struct.Struct(">I" if big else "<I")
    found: dict[int, bytes] = {}
    outside: list[bool] = []
    end = len(data) - 12
    while position <= end:
        group, element, vr, length = short.unpack_from(data, position)
        tag = group << 16 | element
        if tag >= stop and not outside:
            return found, position
        position += 8
        if group == 0xFFFE or not explicit:
            length = long.unpack_from(data, position - 4)[0]
        elif not vr.isalpha():
            break
        elif vr in _LONG_FORM:
            length = long.unpack_from(data, position)[0]
            position += 4
        if tag in _ENDS and outside:
            explicit = outside.pop()
        elif length == _UNDEFINED:
            if tag in PARSERS and not outside:
                found[tag] = b"\1"
            outside.append(explicit)
            explicit = explicit and vr != b"UN"
        else:
            wanted = not outside and (tag in PARSERS or group == 2) and length <= _LONGEST_VALUE
            if wanted and position + length <= len(data):
                found[tag] = data[position : position + length]
            position += length
    return found, -1


def _parse(found: dict[int, bytes], big_endian: bool) -> dict[str, Any]:
    """Return the valid values by field name; the names of the others stand under `bad`."""
    values: dict[str, Any] = {}
    bad: list[str] = []
    for tag, value in found.items():
        if tag not in PARSERS:
            continue
        name, parse = PARSERS[tag]
        try:
            result = parse(value[::-1] if big_endian and parse in _BINARY else value)
        except (ValueError, OverflowError, struct.error):
            bad.append(name)
            continue
        if result is not None:
            values[name] = result[::-1] if big_endian and parse is shorts else result
    return values | {"bad": tuple(bad)}


@contextmanager
def silent_pydicom() -> Iterator[None]:
    """Keep pydicom from saying what it finds odd: its warnings quote the values of the source."""
    from pydicom import config

    before = config.logger.level, config.settings.reading_validation_mode
    config.logger.setLevel(logging.CRITICAL)
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.logger.setLevel(before[0])
        config.settings.reading_validation_mode = before[1]


def _decode_names(found: dict[int, bytes], values: dict[str, Any]) -> tuple[str, ...]:
    """Decode the names by the declared alphabet; where that fails, ISO 8859-1 stays."""
    foreign = {PARSERS[tag][0]: found[tag] for tag in _NAMES if not _is_plain(found.get(tag, b""))}
    if not foreign:
        return ()
    from pydicom import charset

    declared = values.get("charset")
    if not declared:
        return ("CHARSET",)
    try:
        with silent_pydicom():
            warnings.simplefilter("error")
            encodings = charset.convert_encodings(declared.split("\\"))
            for name, raw in foreign.items():
                decoded = charset.decode_bytes(raw, encodings, _NAME_DELIMITERS)
                values[name] = decoded.strip(" \0") or None
    except Exception:  # any: the bytes are hostile, and the decoders are many
        return ("CHARSET",)
    return ()


def _is_plain(value: bytes) -> bool:
    return value.isascii() and b"\x1b" not in value


def _of_frames(data: bytes, n_frames: int) -> dict[str, Any]:
    """Return what the functional groups say; nothing where they do not fit the frames."""
    from pydicom import dcmread

    try:
        with silent_pydicom():
            dataset = dcmread(BytesIO(data), stop_before_pixels=True, force=True)
            shared = _group_values(next(iter(dataset.SharedFunctionalGroupsSequence), ()))
            frames = [shared | _group_values(i) for i in dataset.PerFrameFunctionalGroupsSequence]
            pulses = _ECHOES.get(str(dataset.get("EchoPulseSequence")), ())
            planar = dataset.get("EchoPlanarPulseSequence") == "YES"
            spoiled = str(dataset.get("Spoiling", "NONE")) != "NONE"
    except Exception:  # any: pydicom reads lazily, and the bytes are hostile
        return {}
    if not frames or len(frames) != n_frames:
        return {}
    inverted = ("YES",) in [frame.pop("inverted", ()) for frame in frames]
    equal = {k: v for k, v in frames[0].items() if all(f.get(k) == v for f in frames)}
    return equal | {
        "scanning_sequence": (*pulses, *("IR",) * inverted, *("EP",) * planar),
        "sequence_variant": ("SP",) * spoiled,
        "per_frame": tuple({k: v for k, v in f.items() if k not in equal} for f in frames),
    }


def _group_values(item: Iterable[Any]) -> dict[str, Any]:
    """Return the wanted values of one item of the functional groups, by field name."""
    macros = (e.value[0] for e in item if e.VR == "SQ" and not e.tag.is_private and e.value)
    values: dict[str, Any] = {}
    for element in (element for macro in macros for element in macro):
        if element.tag in _OF_FRAMES and element.VM:
            name, parse = _OF_FRAMES[element.tag]
            parts = element.value if element.VM > 1 else [element.value]
            found = parse("\\".join(map(str, parts)).encode())
            values |= {} if found is None else {name: found}
    return values


def _find_pixels(data: bytes, at: int, syntax: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return where the pixel values lie, their hash, and what is wrong with them."""
    order: Literal["little", "big"] = "big" if syntax == BIG_ENDIAN else "little"
    tag_bytes = struct.pack(">HH" if order == "big" else "<HH", 0x7FE0, 0x0010)
    head = 8 if syntax == IMPLICIT else 12
    if at < 0 or data[at : at + 4] != tag_bytes or at + head > len(data):
        return {"faults": ("TRUNC_HEADER",)}
    length, start = int.from_bytes(data[at + head - 4 : at + head], order), at + head
    pixels = memoryview(data)[start:]
    if length == _UNDEFINED or syntax not in (*NATIVE, DEFLATED):
        return {"faults": (), "pixel_sha256": hashlib.sha256(pixels).hexdigest()}
    each = values.get("samples", 1) * values.get("bits_allocated", 16) * values.get("frames", 1)
    expected = values.get("rows", 0) * values.get("columns", 0) * each // 8
    faults: tuple[str, ...] = ()
    if min(length, len(pixels)) < expected:
        faults = ("TRUNC_PIXELS",)
    elif length > expected + 1 or len(pixels) > length:
        faults = ("TRAILING_DATA",)
    digest = hashlib.sha256(pixels[:expected]).hexdigest()
    return {"faults": faults, "pixel_offset": start, "pixel_sha256": digest}
