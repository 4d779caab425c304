import importlib.util
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from rarescan.cohort.contracts import brain_grid
from rarescan.cohort.template import load_template
from rarescan.errors import MissingExtraError, SettingError
from rarescan.imaging.register import register, to_grid, to_image
from rarescan.imaging.spec import PrepareConfig
from rarescan.imaging.strip import (
    NoBrainError,
    brain_mask,
    command_version,
    resolve,
    surface_distance_mm,
    template_mask,
    without_folders,
)

GRID = brain_grid(2.0)


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    """The template's own head: fluid, dark skull, bright scalp around the brain."""
    template = load_template(2.0)
    away_mm = ndimage.distance_transform_edt(template.brain <= 0.5) * 2.0
    shells = np.select([away_mm <= 3, away_mm <= 8], [0.25, 0.08], 0.95)
    return np.where(template.brain > 0.5, template.t1, shells).astype(np.float32)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_the_template_mask_keeps_the_brain_and_nothing_of_skull_and_scalp(
    head: np.ndarray,
) -> None:
    mask = template_mask(head, GRID)
    assert dice(mask, load_template(2.0).brain > 0.5) > 0.975
    assert not mask[surface_distance_mm(2.0) > 4].any()
    assert mask[surface_distance_mm(2.0) < -6].all()


def test_scalp_is_not_reached_over_the_skull_when_the_head_lies_6_mm_off(
    head: np.ndarray,
) -> None:
    away_mm = ndimage.distance_transform_edt(load_template(2.0).brain <= 0.5) * 2.0
    for axis in range(3):
        moved, scalp = (np.roll(v, 3, axis=axis) for v in (head, away_mm > 8))
        assert (template_mask(moved, GRID) & scalp).sum() < 20


def test_the_mask_does_not_depend_on_the_intensity_unit(head: np.ndarray) -> None:
    np.testing.assert_array_equal(template_mask(head, GRID), template_mask(head * 512, GRID))


def test_fluid_that_replaces_shrunken_cortex_is_left_outside(head: np.ndarray) -> None:
    front = (np.arange(head.shape[1]) * 2 - 111 > 50)[None, :, None]
    rim = front & (np.abs(surface_distance_mm(2.0) + 1.5) <= 2.0)
    shrunk = np.where(rim, np.float32(0.2), head)
    mask = template_mask(shrunk, GRID)
    assert mask[rim].mean() < 0.35
    assert template_mask(head, GRID)[rim].mean() > 0.8


def test_the_mask_is_one_piece_without_holes(head: np.ndarray) -> None:
    noisy = head + np.random.default_rng(0).normal(0, 0.15, head.shape).astype(np.float32)
    mask = template_mask(noisy, GRID)
    assert ndimage.label(mask)[1] == 1
    assert (ndimage.binary_fill_holes(mask) == mask).all()


def test_an_empty_image_has_no_brain() -> None:
    with pytest.raises(NoBrainError):
        template_mask(np.zeros(GRID.shape, np.float32), GRID)


def test_the_surface_lies_between_the_voxels_on_both_its_sides() -> None:
    distance = surface_distance_mm(2.0)
    inside = load_template(2.0).brain >= 0.5
    assert distance[inside].max() == -1.0
    assert distance[~inside].min() == 1.0
    # The template is mirror-symmetric, and so is the distance.
    np.testing.assert_array_equal(distance, distance[::-1])


def test_auto_takes_the_command_then_deepbet_then_the_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolved(**values: object) -> str:
        return resolve(PrepareConfig(**values)).strip  # type: ignore[arg-type]

    command = (sys.executable, "{in}", "{out}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert resolved(strip_command=command) == "command"
    assert resolved() == resolved(strip="deepbet") == "deepbet"
    assert resolved(strip="template", strip_command=command) == "template"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolved() == "template"
    with pytest.raises(MissingExtraError, match=r"prepare\.strip"):
        resolved(strip="deepbet")
    with pytest.raises(SettingError, match="'no-such-tool' cannot be started"):
        resolved(strip_command=("/opt/secret-project/no-such-tool", "{in}", "{out}"))


@pytest.mark.long
def test_both_methods_agree_on_a_real_head(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepbet")
    with tarfile.open(real_data / "dicom/t1/studyforrest_t1w_every2nd.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(next(tmp_path.iterdir())))
    native = sitk.BinShrink(sitk.Cast(sitk.ReadImage(names), sitk.sitkFloat32), [2, 2, 1])
    transform = register(native, starts=1, target_spacing_mm=2.0)
    network, carried = (
        brain_mask(native, transform, GRID, PrepareConfig(strip=strip))
        for strip in ("deepbet", "template")
    )
    assert dice(network, carried) > 0.95
    # The head of a healthy adult; deepbet found 1795 ml at full resolution.
    millilitres = network.sum() * 8e-3 * abs(np.prod(np.linalg.eigvals(_linear(transform)))).real
    assert millilitres == pytest.approx(1795, rel=0.03)
    assert to_grid(native, transform, GRID)[network].min() >= 0


def _linear(transform: sitk.AffineTransform) -> np.ndarray:
    return np.array(transform.GetMatrix()).reshape(3, 3)


# ------------------------------------------------------------------ the command of the user's

TOOL = """
import sys, time
import numpy as np
import SimpleITK as sitk
image = sitk.ReadImage(sys.argv[1])
values = sitk.GetArrayFromImage(image)
brain = {brain}
found = sitk.GetImageFromArray({write})
found.CopyInformation(image)
sitk.WriteImage(found, sys.argv[2])
"""
BRIGHT = "(values > 0).astype(np.uint8)"


@pytest.fixture(scope="module")
def brain_only() -> sitk.Image:
    """The template's brain alone, so that a tool can tell it by its brightness."""
    template = load_template(4.0)
    return to_image(np.where(template.brain > 0.5, template.t1, 0), template.grid.matrix())


def found_by(script: str, image: sitk.Image, folder: Path, minutes: float = 1.0) -> np.ndarray:
    tool = folder / "tool.py"
    tool.write_text(script)
    command = (sys.executable, str(tool), "{in}", "{out}")
    config = PrepareConfig(strip="command", strip_command=command, strip_minutes=minutes)
    try:
        return brain_mask(image, sitk.AffineTransform(3), GRID, config, scratch=folder)
    finally:
        assert [path.name for path in folder.iterdir()] == ["tool.py"], "the head was left behind"


@pytest.mark.parametrize(
    "write", [BRIGHT, "values * 300", "np.where(np.abs(values - 0.8) < 0.005, 0, values)"]
)
def test_what_a_command_writes_above_0_is_brain_whether_mask_or_image_and_holes_are_filled(
    write: str, brain_only: sitk.Image, tmp_path: Path
) -> None:
    mask = found_by(TOOL.format(brain="values", write=write), brain_only, tmp_path)
    assert dice(mask, load_template(2.0).brain > 0.5) > 0.96
    assert (ndimage.binary_fill_holes(mask) == mask).all()


def test_a_command_may_write_its_mask_in_another_orientation(
    brain_only: sitk.Image, tmp_path: Path
) -> None:
    turned = TOOL.format(brain="values", write=BRIGHT).replace(
        "sitk.WriteImage(found,", "sitk.WriteImage(sitk.DICOMOrient(found, 'PIR'),"
    )
    mask = found_by(turned, brain_only, tmp_path)
    assert dice(mask, load_template(2.0).brain > 0.5) > 0.96


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("raise SystemExit('model weights are missing')", "STRIP_FAILED"),
        ("pass", "STRIP_FAILED"),
        ("import sys; open(sys.argv[2], 'w').write('no image')", "STRIP_FAILED"),
        ("import os; os.kill(os.getpid(), 9)", "STRIP_FAILED"),
        (
            TOOL.format(brain="0", write="np.stack([values] * 2), isVector=False").replace(
                "found.Copy", "# "
            ),
            "STRIP_FAILED",
        ),
        (TOOL.format(brain="0", write="0 * values"), "STRIP_MASK"),
        # Half of the core is missing; a second piece far away.
        (
            TOOL.format(brain="np.arange(values.shape[2]) < 20", write="values * brain"),
            "STRIP_MASK",
        ),
        (
            TOOL.format(
                brain="np.add.outer(np.add.outer(np.arange(40), np.arange(48)), np.arange(40)) < 5",
                write="(values > 0) + 1.0 * brain",
            ),
            "STRIP_MASK",
        ),
    ],
    ids=["fails", "writes nothing", "no image", "killed", "4D", "empty", "half", "two pieces"],
)
def test_a_command_that_fails_or_finds_no_brain_costs_the_scan_and_says_why(
    script: str, code: str, brain_only: sitk.Image, tmp_path: Path
) -> None:
    with pytest.raises(NoBrainError) as error:
        found_by(script, brain_only, tmp_path)
    assert error.value.code == code


def test_a_command_that_hangs_is_ended_with_all_that_it_started(
    brain_only: sitk.Image, tmp_path: Path
) -> None:
    child = "import pathlib, sys, time; time.sleep(2); pathlib.Path(sys.argv[1]).touch()"
    late = tmp_path.parent / "late"
    script = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}, {str(late)!r}])\n"
        "time.sleep(60)\n"
    )
    start = time.monotonic()
    with pytest.raises(NoBrainError, match="STRIP_FAILED"):
        found_by(script, brain_only, tmp_path, minutes=0.5 / 60)
    time.sleep(max(0.0, 2.6 - (time.monotonic() - start)))
    assert not late.exists()


def test_no_shell_reads_the_command(brain_only: sitk.Image, tmp_path: Path) -> None:
    written = tmp_path.parent / "written"
    config = PrepareConfig(
        strip="command", strip_command=("true", f"; touch {written} #", "{in}", "{out}")
    )
    with pytest.raises(NoBrainError, match="STRIP_FAILED"):
        brain_mask(brain_only, sitk.AffineTransform(3), GRID, config, scratch=tmp_path)
    assert not written.exists()


def test_a_program_that_cannot_be_run_is_an_error_with_a_remedy(
    brain_only: sitk.Image, tmp_path: Path
) -> None:
    broken = tmp_path / "tool"
    broken.write_bytes(b"\x7fELF no program")
    broken.chmod(0o755)
    config = PrepareConfig(strip="command", strip_command=(str(broken), "{in}", "{out}"))
    with pytest.raises(SettingError, match="'tool' cannot be started") as error:
        brain_mask(brain_only, sitk.AffineTransform(3), GRID, config, scratch=tmp_path)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("command", [(), ("bet",), ("bet", "{in}"), ("bet", "{out}")])
def test_a_command_without_places_for_the_files_is_refused(command: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="strip_command must name"):
        PrepareConfig(strip="command", strip_command=command)


def test_the_version_is_what_the_program_prints_for_version(tmp_path: Path) -> None:
    for text, version in (("tool 7.4.1-beta", "7.4.1"), ("no idea", "unknown")):
        tool = tmp_path / "tool"
        tool.write_text(f"#!/bin/sh\necho '{text}'\n")
        tool.chmod(0o755)
        assert command_version([str(tool)]) == version
    assert command_version(["/no/such/tool"]) == "unknown"
    assert without_folders(["/opt/a/bet", "-x", "{in}"]) == ["bet", "-x", "{in}"]
