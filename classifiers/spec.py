"""The room's settings: how a classifier is trained and tested, and which arms are compared.

Light: nothing numeric is imported here. `require_used` refuses a key that would do nothing: a
person who sets it believes that it does something.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at

from rarescan.classifiers.arm_table import arm_spec
from rarescan.errors import SettingError
from rarescan.settings import STRICT

Backbone = Literal[
    "small",
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet121",
    "efficientnet-b0",
    "efficientnet-b4",
]
RecipeName = Literal["classical", "strong", "tones", "any_tones"]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """How one network is trained, whatever it is trained on."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    network: Backbone = "small"
    """`small`: strided convolutions as `channels` says. The others are MONAI's, with one input
    channel a plane."""
    weights: str = ""
    """Trained weights of a network of MONAI to start from: safetensors or a state dict. ResNets
    take torchvision's names."""
    weights_sha256: str = ""
    """SHA-256 of that file."""
    channels: Annotated[tuple[int, ...], at.MinLen(1)] = (8, 16, 32)
    """Channels after each halving of the image; the last is repeated until 4 voxels are left."""
    steps: Annotated[int, at.Ge(10)] = 200
    """Updates of the weights: the same in every arm, however many scans it has."""
    batch_size: Annotated[int, at.Ge(4)] = 16
    """Scans in one step."""
    learning_rate: Annotated[float, at.Gt(0), at.Lt(1)] = 1e-3
    """Highest rate of the one-cycle schedule."""
    weight_decay: Annotated[float, at.Ge(0)] = 1e-3
    """Of AdamW."""
    dropout: Annotated[float, at.Ge(0), at.Lt(1)] = 0.5
    """Before the last layer."""
    augmentation: Annotated[float, at.Ge(0), at.Le(3)] = 1.0
    """Strength of the augmentation where an arm uses it; 1 is the measured recipe."""
    recipe: RecipeName = "classical"
    """Augmentation: `classical` is the modality's own; for brain volumes also `strong` (bent,
    blurred, shaded), `tones` (strong, with random rising tone curves: for other scanners) and
    `any_tones` (half of the curves without order: for other sequences)."""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    """Train on pairs of scans: blended (Zhang 2018), or with a box from the other (Yun 2019)."""
    mix_alpha: Annotated[float, at.Gt(0), at.Le(10)] = 0.2
    """Beta(alpha, alpha) is the distribution of a pair's shares; CutMix is used to 1."""
    mixed_precision: bool = False
    """Compute the training steps in bfloat16 where that is safe (autocast)."""
    patience: Annotated[int, at.Ge(0)] = 0
    """Looks (20 in all) without a better loss of the validation persons before training stops;
    the best weights are kept. 0: all steps, last weights. Arms take all steps."""
    seed: int = 0
    """First weights, order, augmentation, dropout."""


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """Which ways of training are compared, and how often each is repeated."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    arms: Annotated[tuple[str, ...], at.MinLen(1)] = (
        "real",
        "oversampled",
        "classical",
        "classical_synthetic",
        "placebo",
    )
    """`real` as the cohort is; `oversampled` with both classes equally often; `classical` also
    augmented; `classical_synthetic` also with synthetic patients; `placebo` with controls called
    patients in their place, which must harm. Arms that cost nothing besides: `weighted`, `mixup`,
    `strong`, `tones`, `any_tones`, `landmarks`, `site_balanced`, `age_balanced`. Any of them with
    the batch: `strong+synthetic`, then `:all` (controls too), `:only` or `:pretrain`, and the
    share of places that real persons keep (`strong+synthetic:patients:0.25`)."""
    seeds: Annotated[int, at.Ge(1), at.Le(50)] = 3
    """Repeats of every arm; a person's scores are averaged over them."""
    synthetic_share: Annotated[float, at.Gt(0), at.Le(20)] = 1.0
    """Synthetic patients, as a multiple of what fills the rare class up to the controls (one for
    each real patient at least)."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    held_out: Literal["person", "site"] = "person"
    """`site`: test persons must be from sites that no training or validation person is from, as
    `rarescan hold-out` divides them; the verdict is then for a scanner that was never seen."""
    command: tuple[str, ...] = ()
    """A training program of your own in the place of the network, run without a shell once an arm
    and seed: [python, train.py, "{train}", "{test}", "{scores}"]; also "{folder}" and "{seed}"."""
    command_minutes: Annotated[float, at.Gt(0), at.Le(10_000)] = 60.0
    """The longest that `command` may take for one fit."""
    model: str = ""
    """A trained model of your own that only scores: an ONNX file, or the address of an
    `mlflow.pyfunc` model (models:/name/1). Nothing is retrained, so there is no gain."""

    def __post_init__(self) -> None:
        for arm in self.arms:
            arm_spec(arm)
        if self.command:
            require_places(self.command)
        if self.command and self.model:
            raise SettingError(
                "'retrain.command' and 'retrain.model' are both set.",
                remedy="Name the program that trains, or the model that only scores.",
            )


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """How a classifier is tested on persons whom it has not seen, and what is made of it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    modality: str = ""
    """mri, mri2d, ultrasound, echo_views, mammography or pictures; a module of your own with
    `MODALITY` (`mypackage.mymodule`); empty: by the cohort's scans."""
    classes: tuple[str, ...] = ()
    """The labels to tell apart, in order; empty: the modality's own, or all that occur."""
    scheme: Literal["classes", "ordinal"] = "classes"
    """`ordinal`: the classes are grades in order, and so is the network's last layer."""
    flags: tuple[str, ...] = ()
    """Only scans with all of these flags (`probe_convex`); empty: all scans."""
    folds: Annotated[int, at.Ge(2), at.Le(50)] = 5
    """Every person is tested once a repeat, by a network trained on the other folds."""
    repeats: Annotated[int, at.Ge(1), at.Le(50)] = 5
    """Seeds of the split into folds."""
    group: Literal["person", "source"] = "person"
    """Who must not stand on both sides: a person, or a whole hospital."""
    leaky: bool = False
    """Split by scan, so that a person stands on both sides. Only to show how much that flatters:
    it is printed beside every figure."""
    validation: Annotated[float, at.Gt(0), at.Lt(0.5)] = 0.2
    """Share of a fold's training persons who stop training and calibrate."""
    fewest_persons: Annotated[int, at.Ge(2)] = 5
    """With fewer persons of a class the answer is `insufficient` instead of a figure."""
    views: Annotated[int, at.Ge(0), at.Le(64)] = 0
    """Augmented views of a scan whose probabilities are averaged with the scan's own."""
    uncertainty: Literal["none", "repeats", "dropout", "views"] = "repeats"
    """Spread of the chosen class's probability: over the repeats' networks, over passes with
    dropout, or over the augmented views."""
    passes: Annotated[int, at.Ge(2), at.Le(200)] = 10
    """Passes with dropout."""
    abstain_above: Annotated[float, at.Gt(0), at.Le(0.5)] = 0.5
    """A scan with a larger uncertainty gets no answer; 0.5 is never reached."""
    network: ClassifierConfig = field(default_factory=ClassifierConfig)


@dataclass(frozen=True, kw_only=True)
class AnomalyConfig:
    """A codec that learns normal persons only; what it cannot give back is abnormal.

    Which scans, how many folds, the share of validation persons and the seed are those of
    `classify`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    normal: str = "normal"
    """The label of normal scans; every other class is abnormal."""
    quantile: Annotated[float, at.Gt(0.5), at.Lt(1)] = 0.9
    """Share of the normal validation persons' scans that stay below the threshold."""
    codec: Literal["pca", "kl"] = "pca"
    """The generators' codec that learns: all principal components of the normal scans, or `kl`, an
    autoencoder, worth its time with hundreds of scans."""
    steps: Annotated[int, at.Ge(1)] = 300
    """Training steps of `kl`, four images each."""
    width: Annotated[int, at.Ge(8), at.MultipleOf(8)] = 16
    """Channels of the first resolution level of `kl`."""
    depth: Annotated[int, at.Ge(2), at.Le(5)] = 3
    """Resolution levels; each after the first halves the image's edges."""
    latent_channels: Annotated[int, at.Ge(1), at.Le(64)] = 4
    """Numbers that `kl` keeps at each place of the smallest level."""


Format = Literal["fp16", "bf16", "int8_static", "int8_dynamic", "magnitude", "two_of_four"]


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """Which smaller forms of a classifier are tried, and what they may lose."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    formats: Annotated[tuple[Format, ...], at.MinLen(1)] = (
        "fp16",
        "bf16",
        "int8_dynamic",
        "int8_static",
        "magnitude",
        "two_of_four",
    )
    """Beside 32-bit ONNX: half precision; int8 with ranges from validation persons or anew for
    each image; `magnitude` and `two_of_four` set weights to zero and train on. `bf16` is timed in
    torch, where the CPU computes in it."""
    most_loss: Annotated[float, at.Ge(0), at.Le(0.2)] = 0.01
    """Balanced accuracy on validation persons that a smaller form may lose."""
    least_agreement: Annotated[float, at.Ge(0.5), at.Le(1)] = 0.98
    """Share of the validation persons' scans that must keep their label."""
    calibration_scans: Annotated[int, at.Ge(8), at.Le(4096)] = 128
    """Scans of validation persons that set the ranges of static int8."""
    pruned_share: Annotated[float, at.Gt(0), at.Lt(1)] = 0.5
    """Of each layer's weights, set to zero by `magnitude`."""
    retrain_steps: Annotated[int, at.Ge(10)] = 200
    """Steps of training after weights were set to zero, at a tenth of the learning rate."""
    repeats: Annotated[int, at.Ge(5), at.Le(1000)] = 40
    """Timed calls of each form with one scan."""
    seed: int = 0
    """Which scans calibrate; the bootstrap of persons."""


def require_places(command: Sequence[str]) -> None:
    """Raise `SettingError` unless a training command names its two tables and its scores."""
    words = " ".join(command)
    if missing := [place for place in ("{train}", "{test}", "{scores}") if place not in words]:
        raise SettingError(
            f"'retrain.command' does not say where {', '.join(missing)} goes.",
            remedy="Write it as: python train.py {train} {test} {scores}.",
        )


def require_used(config: ClassifierConfig, where: str = "classifier") -> None:
    """Raise `SettingError` where a key was changed that does nothing beside the others."""
    own = config.network == "small"
    idle = {
        "channels": not own,
        "weights": own,
        "weights_sha256": not config.weights,
        "mix_alpha": config.mix == "none",
        "recipe": not config.augmentation,
    }
    _refuse_idle(config, idle, where)
    if config.weights and not config.weights_sha256:
        raise SettingError(
            f"'{where}.weights' has no SHA-256.",
            remedy=f"Set {where}.weights_sha256 to what `sha256sum` prints of the file.",
        )


def require_used_keys(config: ClassifyConfig) -> None:
    """Raise `SettingError` where a key of `classify` was changed that does nothing."""
    idle = {
        "passes": config.uncertainty != "dropout",
        "abstain_above": config.uncertainty == "none",
        "group": config.leaky,
    }
    _refuse_idle(config, idle, "classify")
    contradictions = {
        "classify.uncertainty: views": config.uncertainty == "views" and config.views < 2,
        "classify.uncertainty: dropout": config.uncertainty == "dropout"
        and not config.network.dropout,
        "classify.views": config.views > 0 and not config.network.augmentation,
        "classify.scheme: ordinal": config.scheme == "ordinal" and len(config.classes) < 3,
    }
    missing = {
        "classify.uncertainty: views": "Set classify.views to 2 or more.",
        "classify.uncertainty: dropout": "Set classify.network.dropout above 0.",
        "classify.views": "Set classify.network.augmentation above 0.",
        "classify.scheme: ordinal": "Name three grades or more in classify.classes.",
    }
    for key, faulty in contradictions.items():
        if faulty:
            raise SettingError(f"'{key}' would have no effect.", remedy=missing[key])
    require_used(config.network, "classify.network")


def require_used_anomaly(config: AnomalyConfig) -> None:
    """Raise `SettingError` where a key of `anomaly` was changed that does nothing."""
    of_kl = ("steps", "width", "depth", "latent_channels")
    _refuse_idle(config, dict.fromkeys(of_kl, config.codec != "kl"), "anomaly")


def _refuse_idle(config: Any, idle: Mapping[str, bool], where: str) -> None:
    defaults = {f.name: f.default for f in fields(config)}
    for key, unused in idle.items():
        if unused and getattr(config, key) != defaults[key]:
            raise SettingError(
                f"'{where}.{key}' has no effect with the other settings.",
                remedy="Leave it out, or set what it belongs to (`rarescan config show` tells).",
            )
