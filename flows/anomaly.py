"""A detector of what no normal person shows, from the generators' codecs.

`anomaly` is the way in. The classifiers know nothing of codecs: they are handed a function that
learns to encode and decode normal persons. What it is worth stands on the page of classifiers.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rarescan.classifiers.spec import AnomalyConfig
from rarescan.cohort.contracts import FloatArray
from rarescan.configs.schema import RunConfig
from rarescan.files import Recipe, require_recipe, run_step
from rarescan.flows.plan import relative, workers_of

if TYPE_CHECKING:
    from rarescan.classifiers.anomaly import Reconstruct

_SLAB = 16
"""The `kl` codec halves all three edges: a plane becomes a slab of so many equal planes."""


def anomaly(config: RunConfig, prepared: Path, folder: Path, *, overwrite: bool = False) -> Path:
    """Learn normal persons, and test on held-out persons whether others stand out."""
    from rarescan.classifiers.anomaly import run_anomaly
    from rarescan.evaluation.classifier_page import write_page

    recipe = Recipe(
        step="anomaly",
        schema=1,
        config={"classify": asdict(config.classify), "anomaly": asdict(config.anomaly)},
        inputs={"prepared": require_recipe(prepared).id},
        found_at={"prepared": relative(prepared, folder)},
    )

    def build(work: Path) -> None:
        learn = partial(learn_codec, settings=config.anomaly, device=config.device)
        run_anomaly(
            work,
            prepared,
            config.classify,
            config.anomaly,
            learn=learn,
            workers=workers_of(config),
        )
        write_page(work)

    return run_step(folder, recipe, build, overwrite=overwrite)


def learn_codec(
    images: FloatArray, folder: Path, seed: int, *, settings: AnomalyConfig, device: str
) -> "Reconstruct":
    """Fit one of the generators' codecs to images; return what encodes and decodes others.

    Parameters
    ----------
    images : float32 array, shape (n, *shape)
        Stored values, 0 to 1. For `kl` each plane of a picture is an image of its own.
    folder : Path
        For checkpoints.
    seed : int
    settings : AnomalyConfig
        Codec, sizes and steps.
    device : str
        auto, cpu or cuda.
    """
    import numpy as np
    import torch

    from rarescan.cohort.planes import are_planes
    from rarescan.generative.anatomy import to_image
    from rarescan.generative.codecs import fit_codec
    from rarescan.generative.spec import GeneratorSpec
    from rarescan.generative.train import choose_device

    sizes = asdict(settings)
    spec = GeneratorSpec(
        family="gaussian",
        codec_steps=sizes.pop("steps"),
        batch_size=4,
        seed=seed,
        **{name: sizes[name] for name in ("codec", "width", "depth", "latent_channels")},
    )
    in_slabs = settings.codec == "kl" and are_planes(images.shape)

    def as_codec_sees(some: FloatArray) -> torch.Tensor:
        seen = np.stack([to_image(image) for image in some])
        if in_slabs:
            planes = np.moveaxis(seen, -1, 1).reshape(-1, *seen.shape[1:4], 1)
            seen = np.repeat(planes, _SLAB, axis=-1)
        return torch.from_numpy(seen)

    codec = fit_codec(as_codec_sees(images), spec, folder=folder, device=choose_device(device))

    def give_back(some: FloatArray) -> FloatArray:
        found = codec.decode(codec.encode(as_codec_sees(some)))[:, 0].numpy()
        if in_slabs:
            found = found.mean(-1).reshape(len(some), -1, *found.shape[1:3])
            found = np.moveaxis(found, 1, -1)
        clipped: FloatArray = np.clip(found, 0, 1).astype(np.float32)
        return clipped

    return give_back
