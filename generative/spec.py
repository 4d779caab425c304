"""The settings of one generator: family, codec, sizes, steps, seed; and of one batch.

`GeneratorSpec` and `GenerateConfig` are the ways in. There is no grid in them: the cohort has
one. Training is bounded by steps, never by seconds, so that the same seed gives the same model on
a slower machine.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at

from rarescan.cohort.contracts import Question
from rarescan.settings import STRICT

Family = Literal["vae", "gan", "diffusion", "gaussian", "transfer"]
CodecName = Literal["haar", "pca", "kl"]
ConditionName = Literal["age_years", "sex", "site", "severity"]
Precision = Literal["auto", "fp32", "bf16"]
Space = Literal["code", "deformation"]


@dataclass(frozen=True, kw_only=True)
class GeneratorSpec:
    """What is trained; the defaults take about a minute of one CPU thread at 4 mm."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    family: Family = "diffusion"
    """`vae`, `gan` and `diffusion` are trained; `gaussian` and `transfer` are the baselines."""
    codec: CodecName = "pca"
    """`pca` for tens of scans, `haar` (exact, needs no training) for networks on whole volumes,
    `kl` (an autoencoder) only for hundreds of scans."""
    levels: Annotated[int, at.Ge(1), at.Le(2)] = 2
    """Levels of the `haar` codec; each halves the code's edges and multiplies channels by 8."""
    components: Annotated[int, at.Ge(1)] = 60
    """Leading principal components that the network of a `pca` code sees; the others are drawn
    from the closed-form Gaussian."""
    latent_channels: Annotated[int, at.Ge(1), at.Le(64)] = 4
    """Channels of the `kl` codec's code."""
    codec_steps: Annotated[int, at.Ge(1)] = 300
    """Training steps of the `kl` codec."""
    codec_weights: str = ""
    """Folder written by `rarescan import-weights`: the AutoencoderKL that the `kl` codec starts
    from. Its own sizes count then; width, depth and latent_channels do not."""
    codec_patch: Annotated[int, at.Ge(0), at.MultipleOf(16)] = 0
    """Edge, in voxels, of the cubes that the `kl` codec is trained on (96 at 1 mm); 0: images
    as a whole."""
    width: Annotated[int, at.Ge(8), at.MultipleOf(8)] = 128
    """Hidden units for `pca` codes; channels of the first level for `haar` and `kl` codes."""
    depth: Annotated[int, at.Ge(1), at.Le(5)] = 2
    """Hidden layers for `pca` codes; resolution levels for `haar` and `kl` codes."""
    latent: Annotated[int, at.Ge(1)] = 16
    """Latent variables of the `vae`."""
    space: Space = "code"
    """Where `transfer` adds what a diagnosis does: to the donor's code, or as a `deformation` that
    moves the donor's tissue (needs codec haar)."""
    steps: Annotated[int, at.Ge(1)] = 600
    """Training steps of the network."""
    batch_size: Annotated[int, at.Ge(2)] = 64
    """Scans in one step, drawn evenly from the diagnoses."""
    learning_rate: Annotated[float, at.Gt(0), at.Le(0.1)] = 1e-3
    """Peak learning rate of AdamW; a tenth of it with `init_from`."""
    init_from: str = ""
    """Folder of a trained generator of the same family, `haar` codec, sizes and conditions, whose
    network this one starts from; the Gaussian is fitted anew."""
    ema_decay: Annotated[float, at.Ge(0), at.Lt(1)] = 0.995
    """Decay of the averaged weights, which are the ones that are kept."""
    label_dropout: Annotated[float, at.Ge(0), at.Lt(1)] = 0.15
    """Share of training items whose diagnosis is hidden; every other condition likewise."""
    guidance: Annotated[float, at.Ge(0), at.Le(5)] = 1.5
    """Strength of the diagnosis in `diffusion` sampling; 1 is the plain conditional."""
    solver_steps: Annotated[int, at.Ge(1), at.Le(1000)] = 10
    """Midpoint steps of `diffusion` sampling; each calls the network twice."""
    checkpoint_every: Annotated[int, at.Ge(1)] = 200
    """Steps between two checkpoints."""
    checkpoint_minutes: Annotated[float, at.Gt(0)] = 10.0
    """Minutes after which a checkpoint is written between those; no result depends on it."""
    checkpoints: str = ""
    """A second place for checkpoints, as a URL (`s3://bucket/folder`, needs s3fs; `file:///...`):
    a training that is started elsewhere goes on from there. No result depends on it."""
    precision: Precision = "auto"
    """Of training: `bf16` computes the networks in half precision. `auto` takes it on a GPU that
    has it, and on a CPU for convolutions where two timed steps say that it pays."""
    gpus: Annotated[int, at.Ge(1), at.Le(64)] = 1
    """GPUs of one machine that share each batch; processes where there is none."""
    seed: int = 0
    """First weights, order, noise: the same seed gives the same model, byte for byte, on CPU."""
    conditions: tuple[ConditionName, ...] = ("age_years", "sex", "site")
    """What is conditioned on beside the diagnosis, as far as the cohort has it."""


@dataclass(frozen=True, kw_only=True)
class AcquisitionConfig:
    """As which scanner would have seen them the scans of a batch are written.

    The candidates are always judged as they are generated.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    how: Literal["none", "set", "drawn", "free"] = "none"
    """`none`: as generated; `set`: all scans by the four values below; `drawn`: each from what the
    training persons' scans show; `free`: each from limits wider than any clinical T1."""
    contrast: tuple[
        Annotated[float, at.Gt(0), at.Lt(0.75)], Annotated[float, at.Gt(0), at.Lt(0.75)]
    ] = (0.25, 0.5)
    """What 0.25 and 0.5 become (about fluid and grey matter) while 0.75 (about white) stays."""
    blur_mm: Annotated[float, at.Ge(0), at.Le(20)] = 0.0
    """Full width at half maximum of what is blurred more."""
    noise: Annotated[float, at.Ge(0), at.Le(0.5)] = 0.0
    """Standard deviation of Rician noise that is added; 1 is the brightest value."""
    bias: Annotated[float, at.Ge(0), at.Le(1)] = 0.0
    """Standard deviation of the logarithm of a coil's shading."""
    widen: Annotated[float, at.Ge(0), at.Le(5)] = 1.5
    """How many times wider than the training scans' own range `drawn` draws."""


@dataclass(frozen=True, kw_only=True)
class FillConfig:
    """Training persons at another site or at another age, in place of a generator's samples."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    what: Literal["none", "site", "age"] = "none"
    """`site`: every training person as each other site would have shown them; `age`: every
    training person at an age of the other half. So no cell of diagnosis and site, or of diagnosis
    and age, stays empty. Near copies of persons: such a batch never leaves the controller."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What a batch of synthetic persons holds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    n: Annotated[int, at.Ge(1)] = 200
    """Synthetic persons, divided evenly between the diagnoses."""
    seed: int = 1
    """The batch's seed: scan i of a seed is the same whatever else is generated."""
    diagnoses: tuple[str, ...] = ()
    """Which diagnoses; empty: all of the cohort."""
    acquisition: AcquisitionConfig = field(default_factory=AcquisitionConfig)
    fill: FillConfig = field(default_factory=FillConfig)


@dataclass(frozen=True, kw_only=True)
class KnowledgeConfig:
    """Patients made of training controls and a pattern of the disease from outside."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    pattern: str = ""
    """A NIfTI map in MNI space (t values, effect sizes, changes of volume), or a table of regions
    (`region,effect`); negative where patients have less tissue."""
    question: Question = field(default_factory=Question)
    """Whose disease, and who the donors are."""
    persons: Annotated[int, at.Ge(1)] = 240
    """Synthetic patients."""
    shrinkage: Annotated[float, at.Ge(0), at.Le(0.5)] = 0.0
    """Loss of tissue's log volume for a growth of 1 in the log-odds of fluid: 0 only opens
    sulci."""
