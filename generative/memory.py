"""What a generator needs: memory, work and room on the disk, known before anything is trained.

`footprint` is the way in. The training step and the sampler run once on torch's `meta` device,
where tensors have a shape but no values, while every storage is counted as a device would hold
it. So what is counted is the code that will run. It is counted in float32: bfloat16 needs less.
"""

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from rarescan.errors import SettingError
from rarescan.generative.anatomy import CHANNELS
from rarescan.generative.codecs import HaarCodec
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.contract import Batch, Player, Prior
from rarescan.generative.floor import Floor, n_directions
from rarescan.generative.model import MICRO_BATCH, StoredModel
from rarescan.generative.spec import GeneratorSpec

_OPTIMISER_BYTES = 12
"""A weight's two moments (AdamW) and its average, float32."""
_LATE = 100
"""A step at which every loss of every family is at work."""
_META = torch.device("meta")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What one generator needs."""

    parameters: int
    """Trained weights of the prior's networks."""
    training_bytes: int
    """Most that is held on the device at a time while the codec or the prior is trained:
    weights, gradients, optimiser, averages, the Gaussian, activations, work space."""
    sampling_bytes: int
    """Most that is held while one micro-batch is drawn and decoded."""
    flops_per_step: int
    """Floating point operations of one training step (2 a multiplication with addition)."""
    disk_bytes: int
    """Images and codes in the step's working folder, while it is trained."""

    def hours_for(self, steps: int, flops_per_second: float) -> float:
        """Return how long so many steps take on a device of that speed."""
        return steps * self.flops_per_step / flops_per_second / 3600


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What running something once took."""

    peak_bytes: int
    """Most that was alive at a time, and the largest storage once more (work space)."""
    flops: int


def footprint(
    spec: GeneratorSpec,
    grid_shape: tuple[int, ...],
    n_features: int,
    n_persons: int,
    *,
    drawn_together: int = MICRO_BATCH,
) -> Footprint:
    """Return what training and sampling need (1 to 5 CPU seconds for networks on grid codes).

    Parameters
    ----------
    spec : GeneratorSpec
        Of any family and codec.
    grid_shape : tuple of int
        Voxels along x, y, z.
    n_features : int
        Numbers of an encoded condition (`ConditionEncoder.n_features`).
    n_persons : int
        Training persons.
    drawn_together : int
        Scans in one micro-batch of the sampler.

    Raises
    ------
    SettingError
        The grid does not fit the codec or the network.
    """
    prior = _imagined_prior(spec, grid_shape, n_features, n_persons)
    step = _one_step(prior.players(), spec.batch_size, prior.floor.code_shape, n_features)
    training = [_resident(prior, trained=True) + step.peak_bytes] if prior.players() else [0]
    if spec.codec == "kl":
        codec, batch_size, shape = _imagined_codec(spec, grid_shape)
        once = _one_step(codec.players(), batch_size, shape, 0)
        training.append(_resident(codec, trained=True) + once.peak_bytes)
    drawn = _one_draw(spec, prior, grid_shape, drawn_together)
    return Footprint(
        parameters=sum(p.numel() for player in prior.players() for p in player.parameters),
        training_bytes=max(training),
        sampling_bytes=_resident(prior, trained=False) + drawn,
        flops_per_step=step.flops,
        disk_bytes=_disk_bytes(spec, grid_shape, prior.floor.size, n_persons),
    )


def counted(run: Callable[[], object]) -> Counted:
    """Return what `run` takes; its tensors are on the `meta` device.

    A question about a value (`tensor.any()`) is answered with yes, which is the dearer branch of
    those that are asked.
    """
    with _Living() as living:
        run()
    return Counted(peak_bytes=living.peak + living.largest, flops=living.flops)


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Adds up the storages that are alive, and the operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.largest = self.flops = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return True
        out = func(*args, **kwargs)
        flops_of = flop_registry.get(func._overloadpacket)
        if flops_of is not None:
            self.flops += flops_of(*args, **kwargs, out_val=out)
        tree_map_only(Tensor, self._note, out)
        return out

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if tensor.device == _META and key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak, self.largest = max(self.peak, self.now), max(self.largest, size)
            weakref.finalize(storage, self._gone, key, size)
        return tensor

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Imagined(Batch):
    """A batch whose random numbers have no values."""

    def normal(self, *shape: int) -> Tensor:
        return torch.empty(*shape, device=_META)

    def uniform(self, *shape: int) -> Tensor:
        return torch.empty(*shape, device=_META)


def code_shape(spec: GeneratorSpec, grid_shape: tuple[int, ...], n_persons: int) -> tuple[int, ...]:
    """Return the shape of a code, before a codec is fitted."""
    x, y, z = grid_shape
    if spec.codec == "haar":
        return HaarCodec((x, y, z), spec.levels).code_shape
    if spec.codec == "kl":
        from rarescan.generative.autoencoder import kl_code_shape

        return kl_code_shape(spec, grid_shape)
    return (min(n_persons - 1, CHANNELS * prod(grid_shape)),)


def _imagined_prior(
    spec: GeneratorSpec, grid_shape: tuple[int, ...], n_features: int, n_persons: int
) -> Prior:
    """Return the prior of a spec, on the `meta` device."""
    from rarescan.generative.families import FAMILIES

    encoder = _some_encoder(n_features, n_persons)
    shape = code_shape(spec, grid_shape, n_persons)
    rank = n_directions(n_persons, shape)
    with _META:
        tensors = {
            "slopes": torch.empty(n_features, prod(shape)),
            "spread": torch.empty(prod(shape)),
            "directions": torch.empty(prod(shape), rank),
            "gains": torch.empty(rank),
            "isotropic": torch.empty(()),
        }
        return FAMILIES[spec.family](spec, Floor(shape, len(encoder.diagnoses), tensors), encoder)


def _some_encoder(n_features: int, n_persons: int) -> ConditionEncoder:
    """Return an encoder with so many features: two diagnoses, and sites for the rest."""
    rest = n_features - 3
    diagnoses = ("a", "b") if rest != 1 else ("a", "b", "c")
    sites = tuple(str(i) for i in range(rest - 1)) if rest > 1 else ()
    half = n_persons // 2
    counts = (n_persons - half, half, 0)[: len(diagnoses)]
    return ConditionEncoder(diagnoses=diagnoses, n_by_diagnosis=counts, sites=sites)


def _imagined_codec(
    spec: GeneratorSpec, grid_shape: tuple[int, ...]
) -> tuple[Any, int, tuple[int, ...]]:
    """Return the kl autoencoder, its batch size and the shape of what it is trained on."""
    from rarescan.generative.autoencoder import KlAutoencoder, training_batch

    with _META:
        model = KlAutoencoder(spec)
    return model, training_batch(spec), (CHANNELS, *grid_shape)


def _one_step(
    players: list[Player], batch_size: int, shape: tuple[int, ...], n_features: int
) -> Counted:
    """Return what one training step takes: the dearest one of the family."""
    batch = _Imagined(
        step=_LATE,
        n_steps=_LATE,
        values=torch.empty(batch_size, *shape, device=_META),
        encoded=torch.empty(batch_size, n_features, device=_META),
        noise=torch.Generator("cpu"),
    )

    def run() -> None:
        for player in players:
            loss = player.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            del loss
            for other in players:
                for parameter in other.parameters:
                    parameter.grad = None

    return counted(run)


def _one_draw(spec: GeneratorSpec, prior: Prior, grid_shape: tuple[int, ...], n_drawn: int) -> int:
    """Return the bytes that a micro-batch takes beside the prior itself."""
    n_pixels = CHANNELS * prod(grid_shape)
    # The number of solver steps changes the time and not the memory.
    prior.spec = replace(spec, solver_steps=1)
    encoded = torch.empty(n_drawn, prior.encoder.n_features, device=_META)
    noise = torch.empty(n_drawn, prior.noise_size, device=_META)

    def draw() -> None:
        with torch.no_grad():
            codes = prior.floor.unwhiten(prior.sample(encoded, noise))
            if spec.codec == "haar":
                HaarCodec((grid_shape[0], grid_shape[1], grid_shape[2]), spec.levels).decode(codes)

    drawn = counted(draw).peak_bytes
    if spec.codec == "pca":
        return drawn + 4 * n_pixels * (prior.floor.size + 2 * n_drawn)
    if spec.codec == "kl":
        return drawn + _one_decoding(spec, grid_shape, n_drawn)
    return drawn


def _one_decoding(spec: GeneratorSpec, grid_shape: tuple[int, ...], n_drawn: int) -> int:
    """Return the bytes of the kl codec and of decoding one image after the other."""
    from rarescan.generative.autoencoder import kl_code_shape

    model, _, _ = _imagined_codec(spec, grid_shape)
    code = torch.empty(1, *kl_code_shape(spec, grid_shape), device=_META)

    def decode() -> None:
        with torch.no_grad():
            model.network.decode(code)

    images = 4 * n_drawn * CHANNELS * prod(grid_shape)
    return _resident(model, trained=False) + images + counted(decode).peak_bytes


def _resident(module: nn.Module, *, trained: bool) -> int:
    """Return the bytes of weights and buffers, and of what training keeps for each weight."""
    weights = sum(p.numel() for p in module.parameters())
    buffers = sum(b.numel() * b.element_size() for b in module.buffers())
    return weights * (4 + _OPTIMISER_BYTES * trained) + buffers


def _disk_bytes(
    spec: GeneratorSpec, grid_shape: tuple[int, ...], code_size: int, n_persons: int
) -> int:
    """Return the bytes of images (of codecs that are fitted), codes and whitened codes."""
    images = 0 if spec.codec == "haar" else CHANNELS * prod(grid_shape)
    return 4 * n_persons * (images + 2 * code_size)


def free_bytes(device: torch.device) -> int:
    """Return how much memory of a device can still be taken."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [psutil.virtual_memory().available]
    try:
        most, used = ((_CGROUP / f"memory.{n}").read_text() for n in ("max", "current"))
        limits += [int(most) - int(used)] if most.strip() != "max" else []
    except OSError:
        pass
    return max(0, min(limits))


def fitting_batch(model: StoredModel, device: torch.device) -> int:
    """Return how many scans are drawn together: 4, on a GPU that has no room for so many 2 or 1.

    Raises `SettingError` where a GPU has no room for one.
    """
    if device.type == "cpu":
        return MICRO_BATCH
    free, needed = free_bytes(device), 0
    about = (model.encoder.n_features, sum(model.encoder.n_by_diagnosis))
    for n_drawn in (MICRO_BATCH, MICRO_BATCH // 2, 1):
        needs = footprint(model.spec, model.grid.shape, *about, drawn_together=n_drawn)
        needed = needs.sampling_bytes
        if needed <= free:
            return n_drawn
    raise SettingError(
        f"To draw one scan about {in_gigabytes(needed)} of memory are needed, and "
        f"{in_gigabytes(free)} are free.",
        remedy="Set device to cpu, or generate where more memory is.",
    )


def require_memory(needs: Footprint, spec: GeneratorSpec, device: torch.device) -> None:
    """Raise `SettingError` where a training would not fit into the device's free memory."""
    free = free_bytes(device)
    if needs.training_bytes <= free:
        return
    smaller = "" if spec.batch_size <= 2 else f"batch_size to {max(2, spec.batch_size // 2)}, "
    raise SettingError(
        f"This training needs about {in_gigabytes(needs.training_bytes)} of memory, and the "
        f"{'GPU' if device.type == 'cuda' else 'machine'} has {in_gigabytes(free)} free.",
        remedy=f"Set {smaller}a smaller width, or prepare the cohort at a coarser spacing; or "
        "train where more memory is.",
    )


def in_gigabytes(n_bytes: float) -> str:
    """Return a size in words, in units of 10^9 bytes."""
    return f"{n_bytes / 1e9:.1f} GB"


def seconds_per_step(prior: Prior, values: Tensor, encoded: Tensor, device: torch.device) -> float:
    """Return the duration of one training step in float32: the second of two.

    Nothing is learned from them. The prior is moved to `device`.
    """
    prior.to(device)
    rows = torch.arange(prior.spec.batch_size) % len(values)
    batch = Batch(
        step=1,
        n_steps=prior.spec.steps,
        values=values[rows].to(device),
        encoded=encoded[rows].to(device),
        noise=torch.Generator("cpu").manual_seed(0),
    )
    seconds = 0.0
    for _ in range(2):
        start = time.monotonic()
        for player in prior.players():
            player.loss(batch).backward()  # type: ignore[no-untyped-call]
            prior.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.monotonic() - start
    return seconds
