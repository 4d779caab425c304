import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(sys.executable).parent / "rarescan"


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    # Coverage cannot write from the limited children that parse files, and says so at length.
    ours = ("MLFLOW_", "PREFECT_", "COVERAGE_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return subprocess.run(
        [str(PROGRAM), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**clean, "RARESCAN_KEY": "", "HOME": str(cwd), **environment},
    )


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the only line of an error, having checked status and silence."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("rarescan:")]
    return line


def test_help_names_the_verbs_in_the_order_of_the_way_and_is_quick(tmp_path: Path) -> None:
    start = time.process_time()
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    verbs = re.findall(r"^  ([a-z]+)  ", done.stdout, re.MULTILINE)
    way = ["phantom", "ingest", "prepare", "train", "evaluate", "select", "generate", "retrain"]
    assert [verb for verb in verbs if verb in way] == way
    assert time.process_time() - start < 1


def test_a_wrong_option_is_a_usage_error(tmp_path: Path) -> None:
    done = run("prepare", "--nonsense", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_unknown_key_is_told_with_the_nearest_one_before_anything_runs(tmp_path: Path) -> None:
    line = one_line(run("run", "demo", "--set", "prepare.spacing=4", cwd=tmp_path), 4)
    assert "Did you mean 'spacing_mm'?" in line
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    options = ["--set", "source.kind=dicom", "--set", "source.path=nowhere"]
    assert "There is no nowhere" in one_line(run("run", "demo", *options, cwd=tmp_path), 4)
    assert list(tmp_path.iterdir()) == []


def test_config_check_and_show_agree_on_a_preset(tmp_path: Path) -> None:
    shown = run("config", "show", "demo", cwd=tmp_path).stdout
    (tmp_path / "mine.yaml").write_text(shown)
    assert "is valid" in run("config", "check", "mine.yaml", cwd=tmp_path).stdout


def test_a_key_is_made_once_readable_for_its_owner_only(tmp_path: Path) -> None:
    done = run("key", "new", "mine.key", cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "mine.key").stat().st_mode & 0o777 == 0o600
    secret = (tmp_path / "mine.key").read_text().strip()
    assert secret not in done.stdout + done.stderr
    again = run("key", "new", "mine.key", cwd=tmp_path)
    assert again.returncode == 4
    assert (tmp_path / "mine.key").read_text().strip() == secret


def test_a_gpu_that_is_not_there_is_told_with_a_remedy(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    line = one_line(run("train", "p", "m", "--device", "cuda", cwd=tmp_path), 4)
    assert "--device cpu" in line


def test_a_folder_that_is_no_run_has_no_report(tmp_path: Path) -> None:
    assert "is no run folder" in one_line(run("report", str(tmp_path), cwd=tmp_path), 4)


def test_a_schedule_must_be_set_before_it_is_served(tmp_path: Path) -> None:
    line = one_line(run("deploy", "--local", "demo", cwd=tmp_path), 4)
    assert "has no schedule" in line


@pytest.mark.long
def test_bad_exports_end_with_4_one_line_and_nothing_written(
    tmp_path: Path, prefect_api: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("Dear colleague")
    run("key", "new", "k", cwd=tmp_path)
    key = ["--key-file", "k"]
    for export, options, words in (
        ("empty", key, "empty"),
        ("letters", key, "DICOM"),
        ("letters", ["--key-file", "absent"], "rarescan key new"),
        ("letters", [*key, "--labels", "absent.csv"], "absent.csv"),
    ):
        done = run("ingest", export, "cohort", *options, cwd=tmp_path, PREFECT_API_URL=prefect_api)
        assert words in one_line(done, 4)
        assert not (tmp_path / "cohort").exists()


@pytest.mark.long
def test_a_one_patient_cohort_is_refused_with_a_remedy(tmp_path: Path, prefect_api: str) -> None:
    import nibabel as nib

    from rarescan.cohort.template import load_template

    template = load_template(4)
    (tmp_path / "in").mkdir()
    rows = ["file,person,diagnosis"]
    for index in range(8):
        noise = np.random.default_rng(index).normal(0, 0.02, template.t1.shape)
        brain = np.where(template.brain > 0.5, template.t1 + noise, 0).clip(0).astype(np.float32)
        nib.save(nib.Nifti1Image(brain, template.grid.matrix()), tmp_path / "in" / f"{index}.nii")
        rows.append(f"{index}.nii,P{index},{'bvFTD' if index == 0 else 'control'}")
    (tmp_path / "in" / "table.csv").write_text("\n".join(rows))
    already = '["stripped","template_space","bias_corrected"]'
    settings = ["--set", "adopt.table=table.csv", "--set", f"adopt.already={already}"]
    server = {"PREFECT_API_URL": prefect_api}
    done = run("ingest", "in", "cohort", "--kind", "table", *settings, cwd=tmp_path, **server)
    assert done.returncode == 0, done.stderr
    done = run("prepare", "cohort", "prepared", "--spacing-mm", "8", cwd=tmp_path, **server)
    assert "Only 1 person has the diagnosis 'bvFTD'" in one_line(done, 4)
    assert not (tmp_path / "prepared").exists()
