"""A trained generator on disk and in memory: spec, weights, and how a sample is drawn.

`save_model`, `read_model` and `TrainedGenerator` are the ways in. `weights.safetensors`
holds tensors and JSON metadata, no code. A scan's bytes depend on the model, the seed, the
scan's index and its condition only: its noise has a seed of its own and is drawn on the CPU, and
networks always see micro-batches of one size, because the last bits of their output depend on the
batch's size. They depend on the device too: only on the CPU are equal seeds equal bytes.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rarescan.cohort.contracts import Condition, FloatArray, Grid
from rarescan.errors import InputError
from rarescan.files import write_atomic, write_json
from rarescan.generative.anatomy import to_volume
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Codec, Prior
from rarescan.generative.spec import GeneratorSpec
from rarescan.seeds import derive
from rarescan.threads import one_thread

SPEC, WEIGHTS = "spec.json", "weights.safetensors"
MICRO_BATCH = 4
"""Scans that are drawn at a time; fewer only on a GPU that has no room for so many."""
_SCHEMA = 1


class TrainedGenerator:
    """A codec and a prior on a grid; see `contract.Generator`. It samples where the prior lies."""

    def __init__(
        self, grid: Grid, codec: Codec, prior: Prior, *, micro_batch: int = MICRO_BATCH
    ) -> None:
        self.grid, self.codec, self.micro_batch = grid, codec, micro_batch
        self.prior = prior.eval().requires_grad_(False)
        self.spec, self.family = prior.spec, prior.spec.family
        self.diagnoses = prior.encoder.diagnoses
        self.near_copies = prior.near_copies

    def served(self, condition: Condition) -> Condition:
        """Return the part of a condition that is obeyed; raise where it cannot be."""
        return self.prior.encoder.served(condition)

    def sample(
        self, conditions: Sequence[Condition], seed: int, first_index: int = 0
    ) -> Iterator[FloatArray]:
        """Yield one volume a condition, in order.

        Parameters
        ----------
        conditions : sequence of Condition
            What is asked for; parts that the cohort did not have are ignored (see `served`).
        seed : int
            Of the batch. Scan i of a batch is the same however the batch is cut into calls.
        first_index : int
            Index, in the batch, of the first condition.

        Yields
        ------
        float32 array, shape (x, y, z)
            Values 0 to 1, 0 outside the brain.

        Raises
        ------
        InputError
            A diagnosis, site or age that the training persons did not have; before any volume.
        """
        encoded = self.prior.encoder.encode(conditions)
        seeds = [derive(seed, first_index + i, "noise") for i in range(len(conditions))]
        return self._volumes(encoded, seeds)

    def _volumes(self, encoded: Tensor, seeds: list[int]) -> Iterator[FloatArray]:
        size, device = self.micro_batch, self.prior.floor.spread.device
        for start in range(0, len(seeds), size):
            part = seeds[start : start + size]
            noise = torch.zeros(size, self.prior.noise_size)
            for row, scan_seed in enumerate(part):
                random = torch.Generator("cpu").manual_seed(scan_seed)
                noise[row] = torch.randn(self.prior.noise_size, generator=random)
            # The last micro-batch is filled up with its last condition.
            rows = [min(start + row, len(seeds) - 1) for row in range(size)]
            with one_thread(), torch.no_grad():
                drawn = self.prior.sample(encoded[rows].to(device), noise.to(device))
                images = self.codec.decode(self.prior.floor.unwhiten(drawn)).cpu()
            for image in images[: len(part)]:
                yield to_volume(image.numpy())


def save_model(folder: Path, grid: Grid, codec: Codec, prior: Prior, about: dict[str, Any]) -> None:
    """Write `spec.json` and `weights.safetensors`; `about` goes into the metadata."""
    tensors = {f"codec.{name}": value for name, value in codec.state().items()}
    tensors |= {f"prior.{name}": value for name, value in prior.state_dict().items()}
    metadata = {
        "schema": _SCHEMA,
        "grid": asdict(grid),
        "conditions": prior.encoder.as_dict(),
        "network_kept": prior.network_kept,
        **about,
    }
    write_json(folder / SPEC, asdict(prior.spec))
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    about_it = {"rarescan": json.dumps(metadata, sort_keys=True)}
    write_atomic(folder / WEIGHTS, safetensors.torch.save(plain, metadata=about_it))


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """What `save_model` wrote."""

    spec: GeneratorSpec
    grid: Grid
    encoder: ConditionEncoder
    network_kept: bool
    tensors: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start so, without that start."""
        found = {k: v for k, v in self.tensors.items() if k.startswith(prefix)}
        return {k.removeprefix(prefix): v for k, v in found.items()}


def read_model(folder: Path) -> StoredModel:
    """Read a generator's folder; nothing in it can run code.

    Raises
    ------
    InputError
        The folder holds no generator, or a damaged one.
    """
    try:
        text = (folder / SPEC).read_text()
        spec: GeneratorSpec = TypeAdapter(GeneratorSpec).validate_json(text, strict=True)
        with safe_open(folder / WEIGHTS, framework="pt") as stored:
            about = json.loads(stored.metadata()["rarescan"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        return StoredModel(
            spec=spec,
            grid=_grid(about["grid"]),
            encoder=ConditionEncoder.from_dict(about["conditions"]),
            network_kept=about["network_kept"],
            tensors=tensors,
        )
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no generator (no {SPEC} with {WEIGHTS}).",
            remedy="Name a folder written by `rarescan train`.",
        ) from None
    except (SafetensorError, ValidationError, KeyError, TypeError, ValueError):
        raise InputError(
            f"The generator in {folder} is damaged or not one of ours.",
            remedy="Train it again: `rarescan train PREPARED MODELS --overwrite`.",
        ) from None


def _grid(stored: dict[str, Any]) -> Grid:
    x, y, z = stored["shape"]
    rows = tuple(tuple(float(v) for v in row) for row in stored["affine"])
    return Grid(shape=(x, y, z), spacing_mm=stored["spacing_mm"], affine=rows)
