"""Kill a training at 50 random moments, let it go on, and compare with an undisturbed one.

    python benchmarks/kill_training.py FOLDER [--kills 50] [--steps 1500] [--seed 0]
        [--codec pca|haar]

The second training runs in processes of its own (forked, so that the libraries are loaded once)
and is killed again and again, by SIGKILL and SIGTERM in turns, at a random moment of its first
0.3 seconds; then it is left to end. Compared bit for bit: the averaged weights that are kept, and
in the last checkpoint weights, averages and the optimiser's moments. A process that gets SIGTERM
must have saved and ended with 143 within 20 s; the longest is printed. FOLDER keeps what is done:
the command may be stopped and repeated.
"""

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import monai.networks.nets  # noqa: F401 - once, before the forks
import torch

from rarescan.cohort.contracts import Condition
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Batch
from rarescan.generative.diffusion import Diffusion
from rarescan.generative.floor import Floor
from rarescan.generative.spec import GeneratorSpec
from rarescan.generative.train import Plan, TrainingData, fit
from rarescan.seeds import generator

SHAPES = {"pca": (24,), "haar": (16, 4, 4, 4)}
N_PERSONS = 30
LONGEST_WAIT_SECONDS = 20.0
BEGUN = "begun"


def main() -> None:
    """Run, kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codec", choices=sorted(SHAPES), default="pca")
    given = parser.parse_args()
    torch.set_num_threads(1)
    whole, parts = given.folder / "whole", given.folder / "parts"
    if not (whole / "end.pt").exists():
        _start(whole, given).join()
    told = _kill_often(parts, given)
    differences = _differences(whole, parts)
    print(f"{told['kills']} kills ({told['terms']} by SIGTERM) at steps {told['steps']}")
    print(f"longest time from SIGTERM to the end: {told['longest']:.2f} s")
    print("same bytes" if not differences else f"DIFFERENT: {', '.join(differences)}")
    sys.exit(bool(differences))


class _Told(Diffusion):
    """Says on the disk that its first step has begun."""

    begun: Path

    def loss(self, batch: Batch) -> torch.Tensor:
        self.begun.touch()
        return super().loss(batch)


def _train(folder: Path, steps: int, codec: str) -> None:
    """Train a small diffusion network on made codes; leave what is kept in the folder."""
    random = generator(1, "codes")
    conditions = [Condition(diagnosis="bvFTD" if i % 3 else "control") for i in range(N_PERSONS)]
    encoder = ConditionEncoder.fit(conditions, ())
    encoded = encoder.encode(conditions)
    codes = torch.from_numpy(random.normal(size=(N_PERSONS, *SHAPES[codec]))).float()
    floor = Floor.fit(codes, encoded, 2)
    spec = GeneratorSpec(codec=codec, width=16, depth=2, steps=steps, batch_size=8,  # type: ignore[arg-type]
                         checkpoint_every=max(1, steps // 60))  # fmt: skip
    prior = _Told(spec, floor, encoder)
    prior.begun = folder / BEGUN
    data = TrainingData(
        values=floor.whiten(codes), encoded=encoded, classes=encoded[:, :2].argmax(1),
        encoder=encoder, held_out=(floor.whiten(codes[:4]), encoded[:4]),
    )  # fmt: skip
    fit(prior, data, Plan.of(spec), folder=folder / "checkpoints", device=torch.device("cpu"),
        what="train")  # fmt: skip
    torch.save(prior.state_dict(), folder / "end.pt")


def _start(folder: Path, given: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BEGUN).unlink(missing_ok=True)
    arguments = (folder, given.steps, given.codec)
    process = multiprocessing.get_context("fork").Process(target=_train, args=arguments)
    process.start()
    return process


def _kill_often(folder: Path, given: Any) -> dict[str, Any]:
    notes = given.folder / "kills.json"
    told: dict[str, Any] = {"kills": 0, "terms": 0, "steps": [], "longest": 0.0}
    told = json.loads(notes.read_text()) if notes.exists() else told
    for number in range(told["kills"], given.kills):
        random = generator(given.seed, "kill", number)
        process = _start(folder, given)
        while not (folder / BEGUN).exists() and process.is_alive():
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        if not process.is_alive():
            break
        gentle = bool(number % 2)
        start = time.monotonic()
        process.terminate() if gentle else process.kill()
        process.join()
        status = process.exitcode
        told["kills"] += 1
        if gentle:
            told["terms"] += 1
            told["longest"] = max(told["longest"], time.monotonic() - start)
            if status != 143 or told["longest"] > LONGEST_WAIT_SECONDS:
                sys.exit(f"SIGTERM ended with {status} after {told['longest']:.1f} s")
        told["steps"].append(_newest_step(folder))
        notes.write_text(json.dumps(told))
    last = _start(folder, given)
    last.join()
    if last.exitcode:
        sys.exit("the last run did not end")
    return told


def _newest_step(folder: Path) -> int:
    names = [path.stem.split("-")[1] for path in (folder / "checkpoints").glob("[ps]*-*.pt")]
    return max(map(int, names), default=-1)


def _differences(whole: Path, parts: Path) -> list[str]:
    """Return the names of tensors that are not the same, bit for bit."""
    newest = max(path.name for path in (whole / "checkpoints").glob("step-*.pt"))
    return [
        f"{name}: {key}"
        for name in ("end.pt", f"checkpoints/{newest}")
        for key, values in _tensors(torch.load(whole / name)).items()
        if not torch.equal(values, _tensors(torch.load(parts / name))[key])
    ]


def _tensors(values: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return {prefix: values}
    inner = values.items() if isinstance(values, dict) else []
    return {k: v for key, part in inner for k, v in _tensors(part, f"{prefix}.{key}").items()}


if __name__ == "__main__":
    main()
