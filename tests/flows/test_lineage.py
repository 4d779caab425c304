from pathlib import Path

from rarescan.cohort.contracts import Condition, Scan
from rarescan.cohort.store import write_cohort
from rarescan.files import Recipe, run_step, write_atomic, write_json
from rarescan.flows.lineage import trace_back


def test_a_synthetic_scan_is_traced_to_the_pseudonymous_series(tmp_path: Path) -> None:
    real = [
        Scan(scan_id=f"RS{k}_ses-01", person_id=f"RS{k}", path=f"sub-RS{k}_T1w.nii.gz",
             condition=Condition(diagnosis="x"))
        for k in range(2)
    ]  # fmt: skip
    synthetic = Scan(scan_id="SYN1", person_id="SYN1", path="sub-SYN1.nii.gz", origin="synthetic",
                     condition=Condition(diagnosis="x"))  # fmt: skip

    def cohort(work: Path) -> None:
        write_cohort(work, scans=real, grid=None, partition={})
        for k in range(2):
            write_json(work / f"sub-RS{k}_T1w.json", {"Stack": f"ST{k}"})

    def batch(work: Path) -> None:
        write_cohort(work, scans=[synthetic], grid=None, partition={})
        write_atomic(work / synthetic.path, b"volume")

    run_step(tmp_path / "cohort", Recipe(step="ingest", schema=1), cohort)
    recipe = Recipe(step="generate", schema=1, found_at={"prepared": "../cohort"})
    run_step(tmp_path / "synthetic", recipe, batch)
    first, last = trace_back(tmp_path / "synthetic" / synthetic.path)
    assert first["detail"]["person_id"] == "SYN1"
    assert last["step"] == "ingest"
    assert last["detail"]["series"] == {"ST0": "RS0_ses-01", "ST1": "RS1_ses-01"}
