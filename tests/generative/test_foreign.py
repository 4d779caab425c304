import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks import nets
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rarescan.cli import beside  # noqa: F401 - registers its commands
from rarescan.cli.main import app
from rarescan.errors import ChangedRecipeError, InputError, SettingError
from rarescan.generative import foreign
from rarescan.generative.definition import read_definition
from rarescan.generative.families import load_generator
from rarescan.generative.foreign import (
    import_weights,
    load_network,
    read_import,
)
from rarescan.generative.parity import require_parity

Trained = Callable[[str, str], Path]
STORED = Path(__file__).parents[1] / "shared" / "monai_generative"
ROWS = sorted(path.name for path in STORED.iterdir() if path.is_dir())
WRONG = [
    (row, variant)
    for name, fc in (
        ("autoencoder-attention", True),
        ("unet", True),
        ("unet-updown", True),
        ("unet-cross", False),
    )
    for row, variant in (
        (f"{name}-2d", {"use_combined_linear": True}),
        (f"{name}-3d", {"include_fc": fc}),
    )
]
CORE = {
    "_target_": "AutoencoderKL",
    "spatial_dims": 2,
    "channels": [4, 8],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "latent_channels": 2,
    "norm_num_groups": 2,
}


def take_old(row: str, folder: Path, **changes: Any) -> Path:
    files = {
        "network": STORED / row / "network.json",
        "pair": STORED / row / "pair.safetensors",
        **changes,
    }
    source = files.pop("source", STORED / row / "weights.safetensors")
    return import_weights(source, folder, **files)


def core_network(path: Path, **changes: Any) -> Any:
    """Write a definition in core's words and return that network with random weights."""
    path.write_text(json.dumps({**CORE, **changes}))
    torch.manual_seed(0)
    return read_definition(path).build().eval()


def test_every_row_of_the_table_is_stored_in_two_and_three_dimensions() -> None:
    names = ("autoencoder", "autoencoder-attention", "unet", "unet-cross", "unet-updown", "vqvae")
    assert sorted(f"{name}-{d}d" for name in names for d in (2, 3)) == ROWS
    assert sum(p.stat().st_size for p in STORED.rglob("*")) < 400_000


@pytest.mark.parametrize("row", ROWS)
def test_an_old_checkpoint_becomes_the_same_function(row: str, tmp_path: Path) -> None:
    folder = take_old(row, tmp_path / "n")
    about = read_import(folder)
    assert about.parity is not None
    assert max(about.parity.values()) < 2e-6
    again = require_parity(about.name, load_network(folder), STORED / row / "pair.safetensors")
    assert again == about.parity
    assert {p.name for p in folder.iterdir()} == {
        "recipe.json",
        "spec.json",
        "weights.safetensors",
    }


@pytest.mark.parametrize(("row", "variant"), WRONG, ids=[f"{r}-{next(iter(v))}" for r, v in WRONG])
def test_what_cores_own_converter_makes_of_it_with_other_attention_is_refused(
    row: str, variant: dict[str, Any], tmp_path: Path
) -> None:
    stored = json.loads((STORED / row / "network.json").read_text())
    kind = stored.pop("_target_").rpartition(".")[2]
    definition = {
        "include_fc": kind == "DiffusionModelUNet" and "with_conditioning" in stored,
        **stored,
        **variant,
    }
    definition["channels"] = definition.pop("num_channels")
    torch.manual_seed(0)
    network = getattr(nets, kind)(**definition)
    network.load_old_state_dict(load_file(STORED / row / "weights.safetensors"))
    save_file(network.state_dict(), tmp_path / "converted.safetensors")
    (tmp_path / "core.json").write_text(json.dumps({"_target_": kind, **definition}))
    files = {"source": tmp_path / "converted.safetensors", "network": tmp_path / "core.json"}
    with pytest.raises(InputError, match="is another function"):
        take_old(row, tmp_path / "n", **files)
    assert not (tmp_path / "n").exists()
    # Without a pair nothing tells; the result says that it was not checked.
    assert read_import(take_old(row, tmp_path / "n", **files, pair=None)).parity is None


def test_one_changed_tensor_is_noticed(tmp_path: Path) -> None:
    tensors = load_file(STORED / "vqvae-3d" / "weights.safetensors")
    name = next(k for k in tensors if k.endswith("conv.weight"))
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="its reconstruction differs"):
        take_old("vqvae-3d", tmp_path / "n", source=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "pair",
    [
        {"input.x": torch.ones(1, 1, 8, 8)},
        {"input.x": torch.ones(1, 1, 8, 8), "output.reconstruction": torch.zeros(1, 1, 8, 8)},
        {"input.x": torch.ones(1, 1, 8, 8), "output.colour": torch.ones(1)},
        {"input.x": torch.ones(1, 3, 8, 8), "output.mean": torch.ones(1, 2, 4, 4)},
        {"output.mean": torch.ones(1, 2, 4, 4)},
    ],
)
def test_a_pair_that_proves_nothing_is_refused(
    pair: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(pair, tmp_path / "pair.safetensors")
    with pytest.raises(InputError, match="proves nothing"):
        take_old("autoencoder-2d", tmp_path / "n", pair=tmp_path / "pair.safetensors")


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "I ran")


@pytest.mark.parametrize("how", ["torch", "pickle", "inside"])
def test_a_hostile_pickle_is_refused_and_not_executed(how: str, tmp_path: Path) -> None:
    trap, checkpoint = tmp_path / "trap", tmp_path / "w.pt"
    if how == "pickle":
        checkpoint.write_bytes(pickle.dumps(Hostile(trap)))
    else:
        content = Hostile(trap) if how == "torch" else {"a": torch.ones(1), "b": Hostile(trap)}
        torch.save(content, checkpoint)
    with pytest.raises(InputError, match="nothing of it was executed"):
        take_old("vqvae-2d", tmp_path / "n", source=checkpoint)
    assert not trap.exists()


def test_checkpoints_come_nested_half_precise_and_from_many_gpus(tmp_path: Path) -> None:
    network = core_network(tmp_path / "network.json")
    state = {k: v.half() for k, v in network.state_dict().items()}
    shapes = {
        "plain": state,
        "nested": {"epoch": 3, "state_dict": state, "optimizer": {"state": {}, "lr": 1e-4}},
        "ddp": {f"module.{k}": v for k, v in state.items()},
    }
    for name, content in shapes.items():
        torch.save(content, tmp_path / f"{name}.pt")
        folder = import_weights(
            tmp_path / f"{name}.pt", tmp_path / name, network=tmp_path / "network.json"
        )
        taken = load_network(folder).state_dict()
        assert all(torch.equal(taken[k], v.float()) for k, v in state.items())
        assert read_import(folder).origin == "monai"
    torch.save({"model": state, "ema": state}, tmp_path / "two.pt")
    with pytest.raises(InputError, match=r"2 sets of weights \(model, ema\)"):
        import_weights(tmp_path / "two.pt", tmp_path / "n", network=tmp_path / "network.json")


def test_damaged_foreign_and_unfitting_checkpoints_are_refused_in_words(tmp_path: Path) -> None:
    definition = tmp_path / "network.json"
    state = core_network(definition).state_dict()
    whole = tmp_path / "w.pt"
    torch.save(state, whole)
    bad = {
        "half.pt": whole.read_bytes()[: whole.stat().st_size // 2],
        "text.pt": b"Dear colleague",
        "text.safetensors": b"Dear colleague",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} (is damaged|holds more)"):
            import_weights(tmp_path / name, tmp_path / "n", network=definition)
    state[next(iter(state))][0] = float("nan")
    torch.save(state, whole)
    with pytest.raises(InputError, match="no numbers"):
        import_weights(whole, tmp_path / "n", network=definition)
    for changes, words in (
        ({"channels": [4, 4]}, "differ in name or shape"),
        ({"num_res_blocks": 2}, "differ in name or shape"),
        ({"channels": [5, 8]}, "MONAI cannot build"),
        ({"chanels": [4, 8]}, "Did you mean 'channels'"),
    ):
        core_definition = tmp_path / "other.json"
        core_definition.write_text(json.dumps({**CORE, **changes}))
        with pytest.raises(InputError, match=words):
            import_weights(
                STORED / "autoencoder-2d" / "weights.safetensors",
                tmp_path / "n",
                network=core_definition,
            )
    assert not (tmp_path / "n").exists()


def bundle_of(folder: Path, config: dict[str, Any], weights: dict[str, Any]) -> Path:
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    torch.save(weights, folder / "models" / "model.pt")
    return folder


def test_a_bundle_is_read_and_never_run(tmp_path: Path) -> None:
    network = core_network(tmp_path / "network.json")
    trap = tmp_path / "trap"
    config = {
        "imports": [f"$open({str(trap)!r}, 'w')"],
        "dims": 2,
        "sizes": {"latent": 2},
        "network_def": {**CORE, "spatial_dims": "@dims", "latent_channels": "@sizes::latent"},
        "network": "$@network_def.to('cpu')",
        "dataset": {"_target_": "os.system", "command": f"touch {trap}"},
    }
    folder = bundle_of(tmp_path / "bundle", config, network.state_dict())
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        mean, _ = network.encode(x)
    save_file({"input.x": x, "output.mean": mean.contiguous()}, tmp_path / "pair.safetensors")
    done = import_weights(folder, tmp_path / "n", pair=tmp_path / "pair.safetensors")
    assert read_import(done).parity == {"mean": 0.0}
    assert not trap.exists()


def test_several_networks_are_chosen_from_by_name(tmp_path: Path) -> None:
    config = {"autoencoder_def": CORE, "other_def": {**CORE, "latent_channels": 3}}
    (tmp_path / "c.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match="--part: autoencoder_def, other_def"):
        read_definition(tmp_path / "c.json")
    assert read_definition(tmp_path / "c.json", "other_def").arguments["latent_channels"] == 3
    with pytest.raises(SettingError, match="Did you mean 'other_def'"):
        read_definition(tmp_path / "c.json", "other")


@given(
    st.recursive(
        st.sampled_from(["$1+1", "%other.json#x", "@nowhere", "@loop", {"_target_": "os.getcwd"}]),
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=2),
            st.dictionaries(st.just("k"), inner, min_size=1),
        ),
        max_leaves=4,
    )
)
def test_whatever_would_have_to_run_is_refused_wherever_it_stands(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    path = tmp_path_factory.mktemp("c") / "c.json"
    path.write_text(json.dumps({"loop": "@loop", "network_def": {**CORE, "act": value}}))
    with pytest.raises(InputError, match="--network"):
        read_definition(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"_target_": "os.system", "command": "ls"}', "it was not imported"),
        ('{"_target_": "monai.networks.nets.UNet"}', "it was not imported"),
        ('{"_target_": "evil.AutoencoderKL"}', "it was not imported"),
        ('{"lr": 1}', "defines no network"),
        ("[1, 2]", "no JSON or YAML"),
        ("{", "no JSON or YAML"),
    ],
)
def test_definitions_of_anything_else_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        read_definition(tmp_path / "c.yaml")


def test_yaml_and_the_old_names_are_understood(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "_target_: generative.networks.nets.DiffusionModelUNet\nnum_channels: [4, 8]\n"
        "_desc_: from the old days\n"
    )
    found = read_definition(tmp_path / "c.yaml")
    assert (found.name, found.arguments) == ("DiffusionModelUNet", {"channels": [4, 8]})


@pytest.mark.long
def test_our_own_generators_give_their_networks(trained: Trained, tmp_path: Path) -> None:
    model = trained("diffusion", "kl")
    with pytest.raises(SettingError, match="--part: codec, network"):
        import_weights(model, tmp_path / "n")
    codec = load_network(import_weights(model, tmp_path / "codec", part="codec"))
    generator: Any = load_generator(model)
    own = generator.codec.state()
    assert all(torch.equal(v, own[f"network.{k}"]) for k, v in codec.state_dict().items())
    unet = load_network(import_weights(model, tmp_path / "unet", part="network"))
    assert all(
        torch.equal(v, unet.state_dict()[k])
        for k, v in generator.prior.network.state_dict().items()
    )
    assert read_import(tmp_path / "unet").origin == "rarescan"
    with pytest.raises(SettingError, match="0 networks"):
        import_weights(trained("gaussian", "pca"), tmp_path / "n")


def test_an_import_can_be_imported_and_repeating_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = take_old("unet-2d", tmp_path / "1")
    second = import_weights(first, tmp_path / "2", pair=STORED / "unet-2d" / "pair.safetensors")
    assert (first / "weights.safetensors").read_bytes() == (
        second / "weights.safetensors"
    ).read_bytes()
    monkeypatch.setattr(foreign, "_fitted", None)
    assert take_old("unet-2d", tmp_path / "1") == first
    with pytest.raises(ChangedRecipeError, match=r"inputs\.pair"):
        take_old("unet-2d", tmp_path / "1", pair=None)


def test_the_command_says_whether_it_was_checked(tmp_path: Path) -> None:
    row = STORED / "vqvae-2d"
    words = ["import-weights", str(row / "weights.safetensors"), str(tmp_path / "n")]
    words += ["--network", str(row / "network.json")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert "was NOT checked" in done.stdout
    done = CliRunner().invoke(app, [*words, "--overwrite", "--pair", str(row / "pair.safetensors")])
    assert "relative error reconstruction 0" in done.stdout
    done = CliRunner().invoke(app, [*words, "--overwrite", "--json"])
    assert json.loads(done.stdout)["parity"] is None


def test_weights_changed_after_the_import_are_not_loaded(tmp_path: Path) -> None:
    folder = take_old("unet-2d", tmp_path / "n")
    weights = folder / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match="not the ones that were imported"):
        load_network(folder)
    spec = folder / "spec.json"
    spec.write_text(spec.read_text().replace("DiffusionModelUNet", "os.system"))
    with pytest.raises(InputError, match="is damaged"):
        load_network(folder)


def test_missing_files_are_named_with_the_way_out(tmp_path: Path) -> None:
    weights = STORED / "unet-2d" / "weights.safetensors"
    with pytest.raises(SettingError, match="--network"):
        import_weights(weights, tmp_path / "n")
    with pytest.raises(InputError, match="There is no"):
        import_weights(tmp_path / "absent.pt", tmp_path / "n")
    with pytest.raises(InputError, match="There is no"):
        import_weights(weights, tmp_path / "n", network=tmp_path / "absent.json")
    with pytest.raises(InputError, match="is no MONAI bundle"):
        import_weights(tmp_path, tmp_path / "n")


@pytest.mark.parametrize("kind", ["AutoencoderKlMaisi", "DiffusionModelUNetMaisi"])
def test_maisis_networks_are_taken_over_as_they_are(kind: str, tmp_path: Path) -> None:
    definition = {
        **{"_target_": kind, "spatial_dims": 3, "in_channels": 1, "out_channels": 1},
        **{"num_channels": [8, 8], "norm_num_groups": 8, "num_res_blocks": [1, 1]},
        "attention_levels": [False, False],
    }
    inputs = {"x": torch.rand(1, 1, 8, 8, 8)}
    if kind == "AutoencoderKlMaisi":
        definition |= {"latent_channels": 2, "num_splits": 1, "norm_float16": False}
        definition |= {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
    else:
        definition |= {"num_head_channels": 8}
        inputs["timesteps"] = torch.tensor([7.0])
    (tmp_path / "n.json").write_text(json.dumps(definition))
    torch.manual_seed(0)
    network: Any = read_definition(tmp_path / "n.json").build().eval()
    for parameter in network.parameters():
        parameter.data += 0.1
    with torch.no_grad():
        if kind == "AutoencoderKlMaisi":
            outputs = {"mean": network.encode(inputs["x"])[0]}
        else:
            outputs = {"output": network(**inputs)}
    pair = {f"input.{k}": v for k, v in inputs.items()}
    save_file(pair | {f"output.{k}": v.contiguous() for k, v in outputs.items()}, tmp_path / "p")
    torch.save({"unet_state_dict": network.state_dict(), "scale_factor": 1.0}, tmp_path / "w.pt")
    folder = import_weights(
        tmp_path / "w.pt", tmp_path / "o", network=tmp_path / "n.json", pair=tmp_path / "p"
    )
    assert read_import(folder).parity == dict.fromkeys(outputs, 0.0)
