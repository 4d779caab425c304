import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rarescan.cli import beside  # noqa: F401 - registers its commands
from rarescan.cli.main import app
from rarescan.cohort.contracts import Condition
from rarescan.errors import GateRefusedError, InputError
from rarescan.files import Recipe, read_recipe, require_recipe, run_step, write_json
from rarescan.generative import anatomy
from rarescan.generative.bundle import export_bundle, require_same_volumes
from rarescan.generative.conditions import ConditionEncoder
from rarescan.generative.families import load_generator
from rarescan.generative.program import (
    brain_mask,
    encode,
    load_program,
    sampling_program,
    unknown_condition,
)

Trained = Callable[[str, str], Path]

# Types MONAI's own command where no module of ours can be imported, and says so at the end.
WITHOUT_OURS = """
import sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "rarescan":
            raise ImportError("rarescan is not here")

sys.meta_path.insert(0, Refusal())
try:
    import rarescan
except ImportError:
    pass
else:
    raise SystemExit("rarescan could be imported")
import runpy
sys.argv = ["monai.bundle", *sys.argv[1:]]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
assert not [name for name in sys.modules if name.partition(".")[0] == "rarescan"]
print("done without rarescan")
"""


def numbers(condition: Condition, encoder: ConditionEncoder) -> torch.Tensor:
    """Return a condition as the program takes it."""
    found = unknown_condition()
    found[0, 0] = encoder.diagnoses.index(condition.diagnosis)
    if condition.age_years is not None:
        found[0, 1] = condition.age_years
    if condition.sex is not None:
        found[0, 2] = 1 if condition.sex == "F" else -1
    if condition.site is not None and condition.site in encoder.sites:
        found[0, 3] = encoder.sites.index(condition.site)
    if condition.severity is not None:
        found[0, 4] = condition.severity
    return found


@pytest.mark.parametrize(
    ("family", "codec"),
    [
        ("gaussian", "pca"),
        ("vae", "pca"),
        ("gan", "pca"),
        ("diffusion", "pca"),
        pytest.param("vae", "haar", marks=pytest.mark.long),
        pytest.param("gan", "haar", marks=pytest.mark.long),
        pytest.param("diffusion", "kl", marks=pytest.mark.long),
    ],
)
def test_the_program_gives_the_samplers_volume_for_the_same_noise(
    family: str, codec: str, trained: Trained
) -> None:
    generator: Any = load_generator(trained(family, codec))
    program = load_program(sampling_program(generator))
    asked = Condition(diagnosis="control", age_years=61.5, sex="M", site="S2")
    condition = numbers(asked, generator.prior.encoder)
    for scan_seed in (1, 2):
        noise = torch.randn(
            generator.prior.noise_size, generator=torch.Generator().manual_seed(scan_seed)
        )
        encoded = generator.prior.encoder.encode([asked])
        wanted = next(generator._volumes(encoded, [scan_seed]))
        with torch.jit.optimized_execution(False):
            volume = program(noise[None], condition)
        assert volume.shape == (1, *generator.grid.shape)
        assert volume.dtype == torch.float32
        assert np.abs(volume[0].numpy() - wanted).max() <= 1e-4
        assert wanted.max() > 0


def command(root: Path) -> list[str]:
    """Return what the bundle's own page says to type, without `python -m monai.bundle`."""
    block = (root / "docs" / "README.md").read_text().split("```")[1]
    words = shlex.split(block[block.index("python -m") :].replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "monai.bundle"]
    return words[3:]


@pytest.mark.long
def test_the_command_of_a_bundles_page_samples_where_our_code_is_not(
    trained: Trained, tmp_path: Path
) -> None:
    model = trained("diffusion", "pca")
    root = export_bundle(model, tmp_path / "bundle", despite_gates=True)
    # Later words win: the same command with other values.
    more = shlex.split("--diagnosis control --age_years 63 --sex F --site 2 --seed 9 --index 3")
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_OURS, *command(root), *more],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "done without rarescan" in done.stdout
    image: Any = nib.load(root / "synthetic_seed-9_index-3.nii.gz")
    generator = load_generator(model)
    asked = Condition(diagnosis="control", age_years=63, sex="F", site="S2")
    wanted = next(generator.sample([asked], 9, first_index=3))
    np.testing.assert_allclose(image.get_fdata(), wanted, atol=1e-4)
    np.testing.assert_array_equal(image.affine, generator.grid.matrix())
    assert image.get_data_dtype() == np.float32


def test_a_bundle_holds_no_person_no_site_and_no_path(trained: Trained, tmp_path: Path) -> None:
    model = trained("gan", "pca")
    root = export_bundle(model, tmp_path / "bundle", despite_gates=True)
    names = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    assert names == {
        "recipe.json",
        "configs/inference.json",
        "configs/metadata.json",
        "models/model.ts",
        "docs/README.md",
    }
    everything = b"".join(p.read_bytes() for p in root.rglob("*") if p.is_file())
    places = [str(tmp_path), str(model), str(Path.cwd()), sys.prefix, "P0000", "discriminator"]
    assert [token for token in places if token.encode() in everything] == []
    texts = "".join(p.read_text() for p in root.rglob("*") if p.suffix in (".json", ".md"))
    assert [token for token in ("S1", "S2", "/", "runs") if f'"{token}' in texts] == []


def test_metadata_and_page_say_what_it_is(trained: Trained, tmp_path: Path) -> None:
    model = trained("gaussian", "pca")
    root = export_bundle(model, tmp_path / "b", despite_gates=True, licence="CC-BY-4.0")
    about = json.loads((root / "configs" / "metadata.json").read_text())
    wanted = (
        *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
        *("required_packages_version", "task", "description", "authors", "copyright"),
        *("network_data_format", "intended_use"),
    )
    assert [key for key in wanted if not about.get(key)] == []
    assert set(about["required_packages_version"]) == {"nibabel", "fire"}
    assert "CC-BY-4.0" in about["copyright"]
    assert about["rarescan"]["permitted_use"] == "inside_controller"
    page = (root / "docs" / "README.md").read_text()
    assert "inside the controller of the cohort only" in page
    assert "| bvFTD | 9 | " in page
    assert about["rarescan"]["model_ts_sha256"] in page
    assert "`--site` | 1 to 2" in page


def judged(trained: Trained, family: str, run: Path, outcomes: list[str]) -> Path:
    """Lay a model into a run's folder, with a decision that judged it; return the model."""
    model = Path(shutil.copytree(trained(family, "pca"), run / "models" / family))
    inputs = {"prepared": "0" * 16, family: require_recipe(model).id}
    recipe = Recipe(step="evaluate", schema=2, inputs=inputs)
    run_step(run / "evaluation", recipe, lambda _work: None)
    gates = [{"name": f"gate {i}", "outcome": o} for i, o in enumerate(outcomes)]

    def decide(work: Path) -> None:
        write_json(work / "decision.json", {"gates": {family: gates}})

    recipe = Recipe(
        step="select",
        schema=2,
        inputs={"evaluation": recipe.id},
        found_at={"evaluation": "../evaluation"},
    )
    run_step(run / "decision", recipe, decide)
    return model


def test_only_what_passed_every_gate_leaves_unasked(trained: Trained, tmp_path: Path) -> None:
    passed = judged(trained, "gaussian", tmp_path / "good", ["pass", "pass"])
    root = export_bundle(passed, tmp_path / "bundle")
    about = json.loads((root / "configs" / "metadata.json").read_text())["rarescan"]
    assert about["permitted_use"] == "release"
    assert "outside the controller" in (root / "docs" / "README.md").read_text()
    for number, outcomes in enumerate((["pass", "fail"], ["pass", "insufficient"], [])):
        run = tmp_path / f"bad{number}"
        model = judged(trained, "gaussian", run, outcomes)
        with pytest.raises(GateRefusedError, match="inside the hospital only"):
            export_bundle(model, run / "bundle")
        assert not (run / "bundle").exists()
    root = export_bundle(model, run / "bundle", despite_gates=True)
    assert "inside the controller" in (root / "docs" / "README.md").read_text()


def test_a_model_that_nobody_judged_or_another_decision_is_refused(
    trained: Trained, tmp_path: Path
) -> None:
    with pytest.raises(GateRefusedError, match="no gate was checked"):
        export_bundle(trained("gaussian", "pca"), tmp_path / "bundle")
    judged(trained, "gaussian", tmp_path / "run", ["pass"])
    with pytest.raises(InputError, match="not about this model"):
        export_bundle(
            trained("vae", "pca"), tmp_path / "bundle", decision=tmp_path / "run" / "decision"
        )
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_persons_never_leave_whatever_is_asked(trained: Trained, tmp_path: Path) -> None:
    transfer = judged(trained, "transfer", tmp_path / "a", ["pass"])
    with pytest.raises(GateRefusedError, match="real persons' anatomy"):
        export_bundle(transfer, tmp_path / "bundle", despite_gates=True)
    erased = judged(trained, "gaussian", tmp_path / "b", ["pass"])
    (erased / "erased.json").write_text("{}")
    with pytest.raises(GateRefusedError, match="was erased since"):
        export_bundle(erased, tmp_path / "bundle", despite_gates=True)


def test_repeating_is_free_and_the_recipe_has_no_path(trained: Trained, tmp_path: Path) -> None:
    model = trained("gaussian", "pca")
    root = export_bundle(model, tmp_path / "bundle", despite_gates=True)
    before = (root / "models" / "model.ts").stat().st_mtime_ns
    assert export_bundle(model, tmp_path / "bundle", despite_gates=True) == root
    assert (root / "models" / "model.ts").stat().st_mtime_ns == before
    recipe = read_recipe(root)
    assert recipe is not None
    assert recipe.found_at == {}


def test_the_program_refuses_what_no_training_person_had(trained: Trained) -> None:
    generator: Any = load_generator(trained("gaussian", "pca"))
    program = load_program(sampling_program(generator))
    noise = torch.zeros(1, generator.prior.noise_size)
    for number, value in ((0, 2.0), (0, -1.0), (1, 12.0), (1, 99.0), (3, 2.0)):
        condition = unknown_condition()
        condition[0, number] = value
        with pytest.raises(torch.jit.Error, match="none that this generator has seen"):
            program(noise, condition)


def test_the_command_exports_and_refuses(trained: Trained, tmp_path: Path) -> None:
    words = ["export-bundle", str(trained("gaussian", "pca")), str(tmp_path / "b")]
    assert isinstance(CliRunner().invoke(app, words).exception, GateRefusedError)
    done = CliRunner().invoke(app, [*words, "--despite-gates", "--licence", "CC0"])
    assert done.stdout.strip() == str(tmp_path / "b")
    assert "CC0" in (tmp_path / "b" / "docs" / "README.md").read_text()


def test_a_program_that_is_another_generators_is_noticed(trained: Trained) -> None:
    one: Any = load_generator(trained("gaussian", "pca"))
    other: Any = load_generator(trained("gan", "pca"))
    other.prior.floor.slopes *= 1.1
    with pytest.raises(RuntimeError, match="differs from the generator"):
        require_same_volumes(one, sampling_program(other))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 0.7))
def test_the_brain_is_the_one_that_our_sampler_finds(seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    shape = (random.random((6, 7, 5)) < share).astype(np.float32) - 0.5
    # Parts of one size have no largest: where there are such, the two may choose differently.
    from scipy import ndimage

    sizes = np.sort(np.bincount(ndimage.label(shape > 0)[0].ravel())[1:])
    if len(sizes) > 1 and sizes[-1] == sizes[-2]:
        return
    found = brain_mask(torch.from_numpy(shape)).numpy()
    np.testing.assert_array_equal(found, anatomy.brain_mask(shape))


def test_the_brain_of_nothing_is_nothing_and_of_a_shell_is_full() -> None:
    assert not brain_mask(torch.full((4, 4, 4), -1.0)).any()
    shell = torch.ones(7, 7, 7)
    shell[2:5, 2:5, 2:5] = -1
    assert brain_mask(shell).all()


@settings(deadline=None)
@given(
    st.sampled_from(["bvFTD", "control"]),
    st.none() | st.floats(48, 77),
    st.sampled_from([None, "F", "M"]),
    st.sampled_from([None, "S1", "S2"]),
    st.none() | st.floats(0, 1),
)
def test_conditions_become_the_same_features(
    diagnosis: str, age: float | None, sex: Any, site: str | None, severity: float | None
) -> None:
    encoder = ConditionEncoder(
        diagnoses=("bvFTD", "control"),
        n_by_diagnosis=(9, 12),
        age_years=(62.1, 7.3, 50.2, 74.9),
        sex=True,
        sites=("S1", "S2"),
        severity=True,
    )
    asked = Condition(diagnosis=diagnosis, age_years=age, sex=sex, site=site, severity=severity)
    assert torch.equal(encode(encoder, numbers(asked, encoder)), encoder.encode([asked]))
