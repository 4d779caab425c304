"""`rarescan generate --from SCAN`: one real scan, as it would be with another diagnosis.

`counterfactual` is the verb. It is a look at one person, not a batch: it is computed in the
command's own process, and what it writes is a near copy of that person, for inside use only.
"""

import hashlib
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rarescan.cohort.contracts import Cohort, Condition, FloatArray, Grid, Scan
from rarescan.cohort.store import create_volumes, open_cohort, open_volumes, require_same_grid
from rarescan.cohort.store import write_cohort as write_tables
from rarescan.configs.schema import RunConfig
from rarescan.errors import InputError, nearest
from rarescan.files import (
    Recipe,
    read_recipe,
    require_recipe,
    run_step,
    sha256_file,
    write_json,
)
from rarescan.flows.batch import champion_at
from rarescan.flows.plan import relative
from rarescan.imaging.persons import fingerprint

if TYPE_CHECKING:
    from rarescan.generative.model import TrainedGenerator

_LARGEST_VALUE = 1.01
"""Above the rounding of a stored NIfTI; a prepared scan ends at 1."""
MOST = 2.0
"""The largest severity: twice the average patient."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Which scan, and what it should become."""

    source: str
    """Scan id of the prepared cohort, or path of a NIfTI file on its grid."""
    diagnosis: str
    severity: float = 1.0
    """How far: 0 leaves the scan as it is, 1 is the average difference of the diagnoses."""
    own: str = ""
    """The diagnosis of a file's person, which a scan id tells by itself."""


def counterfactual(
    config: RunConfig,
    prepared: Path,
    folder: Path,
    wish: Wish,
    *,
    model: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a scan as it would be with another diagnosis, as a BIDS derivative of one scan.

    Parameters
    ----------
    config : RunConfig
        Where the registry is.
    prepared : Path
        The prepared cohort; its training persons say where the difference is believed.
    folder : Path
        Gets the scan, the tables of a cohort, and `batch.json` (near copy, inside use only).
    wish : Wish
        Which scan, and what it should become.
    model : str
        A folder written by `rarescan train`, or the address of a registered version; the
        champion without.
    overwrite : bool
        Replace a folder that holds another result.

    Raises
    ------
    InputError
        No such scan, a file that is not on the grid, a diagnosis that nobody had, or a severity
        out of 0 to 2.
    GateRefusedError
        No model is named and the registry holds no champion.
    """
    if not 0 <= wish.severity <= MOST:
        raise InputError(
            f"A severity of {wish.severity:g} cannot be made.",
            remedy=f"Set --severity from 0 (as it is) to {MOST:g}; 1 is the average patient.",
        )
    cohort = open_cohort(prepared)
    volume, own, person = _source(cohort, wish)
    with tempfile.TemporaryDirectory() as temporary:
        where, about = _model(config, model, Path(temporary))
        found_at = {"prepared": prepared}
        if not about["model_uri"] and read_recipe(where) is not None:
            found_at["model"] = where
        recipe = Recipe(
            step="counterfactual",
            schema=2,
            config={
                # By this `rarescan erase` finds it, wherever it lies.
                "person": person,
                "diagnosis": wish.diagnosis,
                "severity": wish.severity,
                "own": asdict(own),
                "volume_sha256": hashlib.sha256(volume.tobytes()).hexdigest(),
                "model_sha256": about["model_sha256"],
            },
            inputs={"prepared": require_recipe(prepared).id},
            found_at={name: relative(path, folder) for name, path in found_at.items()},
        )

        def build(work: Path) -> None:
            _write(work, cohort, where, (volume, own, wish), {"batch_id": recipe.id, **about})

        return run_step(folder, recipe, build, overwrite=overwrite)


def _source(cohort: Cohort, wish: Wish) -> tuple[FloatArray, Condition, str]:
    """Return the prepared volume, what is known of its person, and the person's fingerprint."""
    path = Path(wish.source)
    if path.name.endswith((".nii", ".nii.gz")):
        if not wish.own:
            raise InputError(
                "What diagnosis the person of a file has is not known.",
                remedy="Name it with --from-diagnosis.",
            )
        return _read(path, cohort.grid), Condition(diagnosis=wish.own), ""
    rows = {scan.scan_id: row for row, scan in enumerate(cohort.scans)}
    if wish.source not in rows:
        raise InputError(
            "The prepared cohort has no such scan.",
            remedy=f"{nearest(wish.source, list(rows))} Scan ids stand in its status.tsv; a file "
            "ends in .nii.gz.",
        )
    row = rows[wish.source]
    scan = cohort.scans[row]
    return np.array(open_volumes(cohort)[row]), scan.condition, fingerprint(scan.person_id)


def _read(path: Path, grid: Grid | None) -> FloatArray:
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image = cast(Any, nibabel).load(path)
        volume = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, ImageFileError, ValueError):
        raise InputError(
            "The file cannot be read as NIfTI.", remedy="Name a scan written by `rarescan prepare`."
        ) from None
    if grid is None or volume.shape != grid.shape or not np.allclose(image.affine, grid.matrix()):
        raise InputError(
            "The file is not on the prepared cohort's grid.",
            remedy="Prepare the scan with the cohort's settings first.",
        )
    if not np.isfinite(volume).all() or volume.min() < 0 or not 0 < volume.max() <= _LARGEST_VALUE:
        raise InputError(
            "The file's values are not those of a prepared scan (0 to 1, 0 outside the brain).",
            remedy="Prepare the scan with the cohort's settings first.",
        )
    return np.clip(volume, 0, 1)


def _model(config: RunConfig, name: str, temporary: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a generator and what is written about it."""
    from rarescan.generative.model import WEIGHTS

    if name and (Path(name) / WEIGHTS).exists():
        about = {"model_uri": "", "model_sha256": sha256_file(Path(name) / WEIGHTS)}
        return Path(name), {**about, "decision_id": ""}
    from rarescan.registry.store import ModelVersion, connect

    found = ModelVersion(**champion_at(config, name))
    folder = connect(config.registry, Path(config.runs)).download(found, temporary / "generator")
    kept = ("model_uri", "model_sha256", "decision_id")
    return folder, {key: getattr(found, key) for key in kept}


def _write(
    work: Path,
    cohort: Cohort,
    model: Path,
    given: tuple[FloatArray, Condition, Wish],
    about: dict[str, Any],
) -> None:
    from rarescan.generative import counterfactual as change
    from rarescan.generative.families import load_generator
    from rarescan.imaging.bids import write_derivative

    volume, own, wish = given
    generator = cast("TrainedGenerator", load_generator(model))
    require_same_grid(generator.grid, cohort.grid, ("The generator", "the prepared cohort"))
    encoder = generator.prior.encoder
    asked = change.asked_condition(encoder, own, wish.diagnosis)
    strength = wish.severity
    if encoder.severity:
        # This generator learned what severity does, so it is asked for one.
        asked, strength = replace(asked, severity=min(wish.severity, 1.0)), 1.0
    where = change.agreement(cohort, encoder, (own.diagnosis, wish.diagnosis))
    made = change.changed(generator, volume, (own, asked), strength=strength, where=where)
    create_volumes(work, 1, generator.grid)[0] = made
    about = {
        **about,
        "family": generator.family,
        "seed": 0,
        "permitted_use": "inside_controller",
        "near_copy_of_a_person": True,
        "prepared_id": require_recipe(cohort.root).id,
        "from_diagnosis": own.diagnosis,
        "diagnosis": wish.diagnosis,
        "severity": wish.severity,
    }
    scan = Scan(
        scan_id="SYN000001_ses-01_T1w",
        person_id="SYN000001",
        origin="synthetic",
        sha256=hashlib.sha256(made.tobytes()).hexdigest(),
        condition=asked,
        target=asked.diagnosis,
        site=asked.site,
        flags=(change.NEAR_COPY,),
    )
    name = "A real person's scan, changed: not for release"
    scans = write_derivative(work, scans=[scan], grid=generator.grid, name=name, model=about)
    write_tables(work, scans=scans, grid=generator.grid, partition={}, about=about)
    write_json(work / "batch.json", {**about, "n": 1})
