"""A training program of your own, run once an arm: tables and images in, scores out.

`Command` is the way in. The program is started without a shell, in a process group that ends with
ours and when its time is over, with one numeric thread and without our names and passwords in its
environment. It sees pseudonyms only, and of the persons whom it is to score no diagnosis.
"""

import csv
import io
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from rarescan.classifiers.scan_dataset import Entry, ScanDataset
from rarescan.classifiers.spec import require_places
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError, SettingError
from rarescan.files import atomic_path, sha256_file, write_atomic
from rarescan.processes import die_with_parent, one_thread_environment

SAID = "said.txt"
"""What the program wrote to stdout and stderr."""
_OURS = ("RARESCAN_", "PREFECT_", "MLFLOW_", "AWS_")
_IMAGES = "images"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A program that trains on one table and scores another."""

    words: tuple[str, ...]
    """`{train}`, `{test}`, `{scores}` become files, `{folder}` the folder that holds them all,
    `{seed}` the repeat's number."""
    minutes: float
    """The longest that one fit may take."""

    def __post_init__(self) -> None:
        require_places(self.words)

    def learn(
        self, train: ScanDataset, held_out: ScanDataset, folder: Path, seed: int
    ) -> FloatArray:
        """Run the program in a folder; return the score of each held-out scan, shape (n,).

        `train.csv` has one line a scan (`path`, `label` 1 or 0, `person_id`, `scan_id`, `origin`,
        `age_years`, `sex`, `site`; a scan may stand there more often than once), `test.csv` the
        same without label and origin. `scores.csv` must have `scan_id` and `score`, the
        probability of the positive diagnosis, for every line of `test.csv`.

        Raises
        ------
        SettingError
            The program cannot be started.
        InputError
            It failed, took too long, or its scores cannot be used.
        """
        files = {name: folder / f"{name}.csv" for name in ("train", "test", "scores")}
        files["scores"].unlink(missing_ok=True)
        images = folder / _IMAGES
        shutil.rmtree(images, ignore_errors=True)
        write_atomic(files["train"], _table(train, images / "train"))
        write_atomic(files["test"], _table(held_out, images / "test"))
        places = {f"{{{name}}}": str(path.resolve()) for name, path in files.items()}
        places |= {"{folder}": str(folder.resolve()), "{seed}": str(seed)}
        _run([_filled(word, places) for word in self.words], self.minutes, folder)
        scores = _read_scores(files["scores"], [e.scan.scan_id for e in held_out.entries])
        shutil.rmtree(images)
        return scores

    def identity(self) -> dict[str, Any]:
        """Return what the results depend on: the words, and the content of files among them."""
        files = {Path(w).name: sha256_file(Path(w)) for w in self.words[1:] if Path(w).is_file()}
        words = [Path(w).name if Path(w).is_absolute() else w for w in self.words]
        return {"words": words, "files": files}


def _table(scans: ScanDataset, images: Path) -> str:
    """Write every image once, under a number; return the lines that name them."""
    written: dict[Any, Path] = {}
    rows = []
    for index, entry in enumerate(scans.entries):
        which = index if scans.is_augmented else (entry.file, entry.row)
        if which not in written:
            written[which] = _write_image(scans.image(index)[0].numpy(), entry, images, index)
        rows.append(_line(entry, written[which]))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _line(entry: Entry, path: Path) -> dict[str, Any]:
    scan, condition = entry.scan, entry.scan.condition
    hidden = entry.label is None
    return {
        "path": path.resolve(),
        **({} if hidden else {"label": entry.label}),
        "person_id": scan.person_id,
        "scan_id": scan.scan_id,
        **({} if hidden else {"origin": scan.origin}),
        "age_years": condition.age_years,
        "sex": condition.sex,
        "site": scan.site or condition.site,
    }


def _write_image(image: FloatArray, entry: Entry, images: Path, number: int) -> Path:
    """Write one image as NIfTI, a single plane as PNG."""
    path = images / f"{number:06d}{'.png' if image.shape[-1] == 1 else '.nii.gz'}"
    with atomic_path(path) as temporary:
        if image.shape[-1] == 1:
            Image.fromarray(np.rint(image[:, :, 0] * 255).astype(np.uint8)).save(temporary)
        else:
            nibabel.Nifti1Image(image, np.array(entry.affine)).to_filename(temporary)
    return path


def _filled(word: str, places: Mapping[str, str]) -> str:
    for name, place in places.items():
        word = word.replace(name, place)
    return word


def _run(words: Sequence[str], minutes: float, folder: Path) -> None:
    """Run a program without a shell; end it and all that it started when it takes too long."""
    kept = {k: v for k, v in one_thread_environment().items() if not k.startswith(_OURS)}
    with (folder / SAID).open("wb") as said:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=kept,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except (OSError, subprocess.SubprocessError):
            raise SettingError(
                f"The training command '{Path(words[0]).name}' cannot be started.",
                remedy="Install it, or give its whole path in `retrain.command`.",
            ) from None
        try:
            status = process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            raise InputError(
                f"The training command took longer than {minutes:g} minutes.",
                remedy="Raise retrain.command_minutes, or train for fewer steps.",
            ) from None
        finally:
            _end_group(process)
    if status != 0:
        lines = (folder / SAID).read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "nothing")
        raise InputError(
            f"The training command ended with {status} and said: {last}",
            remedy=f"All that it said stands in {folder.parent.name}/{folder.name}/{SAID} of the "
            "unfinished result; correct the program and repeat the command.",
        )


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End whatever the program left running, itself where it was interrupted."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _read_scores(path: Path, scan_ids: Sequence[str]) -> FloatArray:
    try:
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        found = {row["scan_id"]: float(row["score"]) for row in rows}
    except FileNotFoundError:
        raise _no_scores("wrote no scores") from None
    except (KeyError, ValueError, TypeError):
        raise _no_scores("wrote a table without the columns scan_id and score") from None
    missing = [scan for scan in scan_ids if scan not in found]
    if missing:
        raise _no_scores(f"left {len(missing)} of {len(scan_ids)} scans without a score")
    return np.array([found[scan] for scan in scan_ids], np.float32)


def _no_scores(what: str) -> InputError:
    return InputError(
        f"The training command ended well and {what}.",
        remedy="It must write a CSV to {scores}: scan_id and score (the probability of the "
        "positive diagnosis, 0 to 1) of every line of {test}.",
    )
