"""Time a training step against the loop of the public tutorials, with the same network.

    python benchmarks/training_speed.py [--steps 12] [--batch 4] [--spacing-mm 4|2]

Both train the same U-Net (channels 32, 64) by the same loss, on codes of the same kl codec (32,
64, 64, as in the 3-D latent diffusion tutorial of MONAI's GenerativeModels). The tutorial's loop
encodes every batch anew and uses AdamW unfused; ours reads codes that were computed once, and its
AdamW is fused. The two take turns, in one process and one thread; CPU seconds count. Half
precision is measured where the CPU has instructions for it, and said to be missing where not.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rarescan.cohort.contracts import Condition, brain_grid
from rarescan.generative.autoencoder import KlAutoencoder
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Batch
from rarescan.generative.diffusion import Diffusion
from rarescan.generative.floor import Floor
from rarescan.generative.precision import cpu_has_bf16
from rarescan.generative.spec import GeneratorSpec, Precision
from rarescan.generative.train import Plan, TrainingData, fit
from rarescan.threads import one_thread

N_PERSONS, N_TURNS = 16, 3
CPU = torch.device("cpu")


def main() -> None:
    """Time both loops in turn and print samples a second and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--spacing-mm", type=float, default=4.0)
    given = parser.parse_args()
    shape = brain_grid(given.spacing_mm).shape
    images = torch.rand(N_PERSONS, 2, *shape, generator=torch.Generator().manual_seed(0))
    # A code of 10 x 12 x 10 can be halved once.
    spec = GeneratorSpec(codec="kl", width=32, depth=2, latent_channels=3, batch_size=given.batch,
                         steps=given.steps, checkpoint_every=10**6)  # fmt: skip
    with one_thread():
        codec = KlAutoencoder(replace(spec, depth=3)).eval().requires_grad_(False)
        prior, codes, encoded = _prior(spec, codec, images)
        timed = {"tutorial": [], "ours fp32": []}
        if cpu_has_bf16():
            timed["ours bf16"] = []
        for _ in range(N_TURNS):
            timed["tutorial"].append(_tutorial(prior, codec, images, encoded, spec))
            for name in list(timed)[1:]:
                timed[name].append(_ours(prior, codes, encoded, spec, name.split()[1]))  # type: ignore[arg-type]
    seconds = {name: min(taken) for name, taken in timed.items()}
    print(f"{' x '.join(map(str, shape))} voxels, batch {given.batch}, torch {torch.__version__}")
    for name, each in seconds.items():
        print(f"{name:10s} {each:8.3f} CPU s a step {given.batch / each:8.2f} samples/s "
              f"{seconds['tutorial'] / each:6.1f} x")  # fmt: skip
    if not cpu_has_bf16():
        print("ours bf16  not measured: this CPU has no bfloat16 instructions")


def _prior(
    spec: GeneratorSpec, codec: KlAutoencoder, images: Tensor
) -> tuple[Diffusion, Tensor, Tensor]:
    names = ("bvFTD", "control")
    conditions = [Condition(diagnosis=names[i % 2]) for i in range(len(images))]
    encoder = ConditionEncoder.fit(conditions, ())
    encoded = encoder.encode(conditions)
    codes = torch.cat([_codes(codec, part) for part in images.split(4)])
    floor = Floor.fit(codes, encoded, 2)
    return Diffusion(spec, floor, encoder), floor.whiten(codes), encoded


def _codes(codec: KlAutoencoder, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = codec.network.encode(images)[0]
    return found


def _tutorial(
    prior: Diffusion, codec: KlAutoencoder, images: Tensor, encoded: Tensor, spec: GeneratorSpec
) -> float:
    """Return the CPU seconds of a step that encodes its batch and moves weights one by one."""
    player = prior.players()[0]
    optimiser = torch.optim.AdamW(player.parameters, lr=1e-4, fused=False, foreach=False)
    prior.train()
    start = time.process_time()
    for step in range(spec.steps):
        rows = torch.randint(len(images), (spec.batch_size,))
        batch = Batch(
            step=step, n_steps=spec.steps, encoded=encoded[rows], noise=torch.Generator(),
            values=prior.floor.whiten(_codes(codec, images[rows])),
        )  # fmt: skip
        optimiser.zero_grad(set_to_none=True)
        player.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(player.parameters, 1.0)
        optimiser.step()
    return (time.process_time() - start) / spec.steps


def _ours(
    prior: Diffusion, codes: Tensor, encoded: Tensor, spec: GeneratorSpec, precision: Precision
) -> float:
    """Return the CPU seconds of a step of the product's loop, its averages and curves included."""
    data = TrainingData(
        values=codes, encoded=encoded, classes=encoded[:, :2].argmax(1), encoder=prior.encoder
    )
    taken = []
    for steps in (1, 1 + spec.steps):
        plan = Plan(**{**vars(Plan.of(spec)), "steps": steps, "precision": precision})
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            fit(prior, data, plan, folder=Path(folder), device=CPU, what="train")
            taken.append(time.process_time() - start)
    # Less a run of one step: what is done once, checkpoints mostly, is no part of a step.
    return (taken[1] - taken[0]) / spec.steps


if __name__ == "__main__":
    main()
