"""Register heads that lie in the scanner at random, and say how far off the result is.

    python benchmarks/registration.py RESULTS.jsonl [--heads 200] [--at-most 30] [--degrees 40]

Every head is an invented person (own tissues, contrast, size) in skull, scalp and neck, turned
about each axis and moved along each by uniform amounts, with shading and Rician noise. It goes
through what `rarescan prepare` does: N4, registration, gates. The error is the mean displacement
of the brain's voxels against the map that the head was made by. With `--own-shape` the heads are
also bent as persons are; no affine map is true then (the best leaves 3 mm), and the error is
against the nearest one in least squares. One line of JSON a head: a later call goes on where the
last one stopped, and each ends with the figures of all.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation

from rarescan.cohort.contracts import BRAIN_BOX_MM, brain_grid
from rarescan.cohort.template import load_template
from rarescan.imaging import qc
from rarescan.imaging.register import one_thread, ras_matrix, register, to_grid, to_image
from rarescan.imaging.scan import correct_bias
from rarescan.imaging.strip import template_mask
from rarescan.phantom.anatomy import Brain, brain_of, brightness_of, receive
from rarescan.phantom.head import HEAD_MM, head_picture, scan_head
from rarescan.phantom.persons import draw_person
from rarescan.phantom.spec import PRESETS, PhantomConfig
from rarescan.seeds import generator
from rarescan.threads import one_thread as one_torch_thread

Matrix = npt.NDArray[np.float64]

CONFIG = PhantomConfig(preset="hard")
EDGE_MM, VOXEL_MM = 288.0, 1.5
SHIFT_MM = 40.0
GOOD_MM = 2.0
SETTINGS = ("own_shape", "degrees", "starts", "bias")


def main() -> None:
    """Register what is not in the file yet, then print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--heads", type=int, default=200)
    parser.add_argument("--at-most", type=int, default=10**6, help="heads in this call")
    parser.add_argument("--degrees", type=float, default=40.0)
    parser.add_argument("--starts", type=int, choices=(1, 27), default=27)
    parser.add_argument("--bias", choices=("coarse", "full"), default="full")
    parser.add_argument("--own-shape", action="store_true")
    given = parser.parse_args()
    rows = _rows(given.results)
    mine = {name: getattr(given, name) for name in SETTINGS}
    done = {row["head"] for row in rows if mine.items() <= row.items()}
    one_thread()
    for head in [h for h in range(given.heads) if h not in done][: given.at_most]:
        with one_torch_thread():
            row = mine | one_head(head, given)
        with given.results.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        rows.append(row)
    sys.exit(not _print_figures(rows))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def one_head(index: int, given: argparse.Namespace) -> dict[str, Any]:
    """Make, correct and register one head; return its error in mm, seconds and measures."""
    image, truth = scanned(index, given.degrees, own_shape=given.own_shape)
    start = time.process_time()
    corrected = correct_bias(image, given.bias)
    middle = time.process_time()
    transform = register(corrected, starts=given.starts, target_spacing_mm=1.0)
    end = time.process_time()
    found = ras_matrix(transform)
    look = to_grid(corrected, transform, brain_grid(qc.LOOK_MM), spline=False)
    measures = qc.measure(corrected, found, look, template_mask(look, brain_grid(qc.LOOK_MM)))
    return {
        "head": index,
        "error_mm": round(displacement_mm(found, truth), 3),
        "bias_seconds": round(middle - start, 2),
        "register_seconds": round(end - middle, 2),
        "refused": qc.refusal(measures),
        **qc.as_row(measures),
    }


def scanned(
    index: int,
    degrees: float,
    *,
    own_shape: bool = False,
    voxel_mm: float = VOXEL_MM,
    edge_mm: float = EDGE_MM,
) -> tuple[sitk.Image, Matrix]:
    """Return one head as a scanner saw it, and the true affine map template -> native, RAS mm."""
    rng = generator(CONFIG.seed, "benchmark", "registration", index)
    person = draw_person(CONFIG, index)
    brain = brain_of(CONFIG, person, HEAD_MM)
    if not own_shape:
        brain = replace(brain, shape=torch.zeros_like(brain.shape))
    pose = np.eye(4)
    turn = Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True)
    pose[:3, :3] = turn.as_matrix() * (0.95 + rng.uniform(-0.05, 0.05, 3))
    pose[:3, 3] = rng.uniform(-SHIFT_MM, SHIFT_MM, 3)
    n = int(edge_mm / voxel_mm)
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = (voxel_mm - edge_mm) / 2
    picture = head_picture(brain, brightness_of(CONFIG, person), solid=1.0, blur_mm=1.0)
    preset = PRESETS[CONFIG.preset]
    received = receive(
        scan_head(picture, brain.shape, pose, affine, (n, n, n)),
        rng,
        bias=preset.bias,
        noise=preset.noise,
        box_mm=(edge_mm, edge_mm, edge_mm),
    )
    return to_image(500 * received.numpy(), affine), nearest_affine(brain, pose)


def nearest_affine(brain: Brain, pose: Matrix) -> Matrix:
    """Return the affine map nearest to pose and shape together, over the brain."""
    template = load_template(4.0)
    voxels = np.argwhere(template.brain > 0.5)
    person = np.c_[voxels, np.ones(len(voxels))] @ template.grid.matrix().T
    # The shape is a pull-back on the 4 mm grid, z, y, x, in halves of the box.
    moved = brain.shape.numpy().transpose(1, 2, 3, 0)[..., ::-1] * (np.array(BRAIN_BOX_MM) / 2)
    there = person.copy()
    there[:, :3] += moved[tuple(voxels.T)]
    # Solved from person to template: the other way round, the scatter of the shape shrinks it.
    to_template: Matrix = np.linalg.lstsq(person, there, rcond=None)[0].T
    solved: Matrix = pose @ np.linalg.inv(to_template)
    return solved


def displacement_mm(found: Matrix, truth: Matrix) -> float:
    """Return how far the brain's voxels land from where they belong, on average."""
    template = load_template(4.0)
    voxels = np.argwhere(template.brain > 0.5)
    points = np.c_[voxels, np.ones(len(voxels))] @ template.grid.matrix().T
    return float(np.linalg.norm((points @ (found - truth).T)[:, :3], axis=1).mean())


def _print_figures(rows: list[dict[str, Any]]) -> bool:
    """Print one line a configuration; return whether 27 starts keep the promise."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in SETTINGS)].append(row)
    kept = True
    for (own_shape, degrees, starts, bias), group in sorted(groups.items()):
        errors = np.array([row["error_mm"] for row in group])
        good = (errors <= GOOD_MM).mean()
        refused = np.array([row["refused"] is not None for row in group])
        wrong = errors > GOOD_MM
        metrics = np.array([row["metric"] for row in group])
        seconds = [
            np.median([row[f"{of}_seconds"] for row in group]) for of in ("bias", "register")
        ]
        print(
            f"{starts} starts, {degrees:g} degrees, {SHIFT_MM:g} mm, {bias} N4"
            f"{', own shape' if own_shape else ''}: n = {len(group)}, "
            f"{100 * good:.1f} % within {GOOD_MM:g} mm, median {np.median(errors):.2f}, "
            f"99th percentile {np.percentile(errors, 99):.2f}, largest {errors.max():.2f} mm; "
            f"wrong and not refused {(wrong & ~refused).sum()}, "
            f"right and refused {(refused & ~wrong).sum()}; metric of the right ones "
            f"{metrics[~wrong].min():.2f} to {metrics[~wrong].max():.2f}; CPU s: "
            f"N4 {seconds[0]:.1f}, registration {seconds[1]:.1f}"
        )
        kept &= own_shape or starts == 1 or bool(good >= 0.99 and np.median(errors) <= 0.7)
    return kept


if __name__ == "__main__":
    main()
