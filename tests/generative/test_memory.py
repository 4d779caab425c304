import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rarescan.cohort.contracts import brain_grid
from rarescan.configs.schema import load_config
from rarescan.errors import SettingError
from rarescan.generative import memory
from rarescan.generative.families import FAMILIES, train_generator
from rarescan.generative.memory import counted, footprint, free_bytes, require_memory
from rarescan.generative.spec import GeneratorSpec

FOUR_MM = (40, 48, 40)
GIB = 2**30


def saved_by(network: nn.Module, *inputs: torch.Tensor) -> int:
    """Return the bytes that autograd keeps of one forward pass, each storage once."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(*inputs)
    return sum(size for key, size in kept.items() if key not in own)


def test_what_is_counted_agrees_with_a_known_network() -> None:
    from monai.networks.nets import DiffusionModelUNet

    with torch.device("meta"):
        network = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=64,
            out_channels=64,
            channels=(64, 128, 256),
            num_res_blocks=2,
            attention_levels=[False, False, True],
            norm_num_groups=32,
            num_head_channels=64,
            resblock_updown=True,
            use_flash_attention=True,
        )
        x, times = torch.empty(1, 64, 40, 48, 40), torch.empty(1)
    kept: list[torch.Tensor] = []
    forward = counted(lambda: kept.append(network(x, times)))
    # Measured for this network when it was chosen, by other means.
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(44.4, rel=0.01)
    assert forward.flops / 2e9 == pytest.approx(340, rel=0.01)
    saved = saved_by(network, x, times)
    assert saved / GIB == pytest.approx(1.52, rel=0.1)
    # What was alive at the end of the forward pass is what was saved, and a little.
    assert saved < forward.peak_bytes < 1.25 * saved


def test_a_chain_of_layers_is_counted_to_the_byte() -> None:
    with torch.device("meta"):
        layer = nn.Linear(1000, 1000, bias=False)
        x = torch.empty(500, 1000)
    step = counted(lambda: layer(x.clone()).sum().backward())
    # Forward, and the gradient of the weights: nobody asks for the input's.
    assert step.flops == 2 * 2 * 500 * 1000 * 1000
    # The saved input; the weights' gradient, which is laid out anew for the weights; and the
    # largest of all once more, as work space.
    assert step.peak_bytes == pytest.approx(4 * (500 + 3 * 1000) * 1000, abs=100)


@pytest.mark.parametrize("preset", ["hospital-1mm", "hospital-2mm"])
def test_presets_need_what_they_say(preset: str) -> None:
    config = load_config(preset)
    text = (Path(str(files("rarescan.configs"))) / f"{preset}.yaml").read_text()
    shape = brain_grid(config.prepare.spacing_mm).shape
    for name in ("diffusion", "vae"):
        needs = footprint(config.train[name], shape, n_features=10, n_persons=300)
        told = re.search(
            rf"#   {name} +training ([\d.]+) GB, sampling ([\d.]+) GB; ([\d.]+) TFLOP", text
        )
        assert told is not None
        counted_now = (needs.training_bytes / 1e9, needs.sampling_bytes / 1e9)
        assert [float(v) for v in told.groups()[:2]] == pytest.approx(counted_now, rel=0.1)
        assert float(told[3]) == pytest.approx(needs.flops_per_step / 1e12, rel=0.1, abs=0.05)
        # A whole brain of 1 mm is trained on 16 GB and sampled on 8.
        assert needs.training_bytes < 16e9
        assert needs.sampling_bytes < 8e9


def test_hours_follow_from_the_work() -> None:
    needs = memory.Footprint(
        parameters=1, training_bytes=1, sampling_bytes=1, flops_per_step=36 * 10**12, disk_bytes=1
    )
    assert needs.hours_for(1000, flops_per_second=1e13) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("family", "codec"),
    [*((f, "pca") for f in FAMILIES), ("gaussian", "haar"), ("gaussian", "kl")],
)
def test_families_have_footprints(family: Any, codec: Any) -> None:
    spec = GeneratorSpec(family=family, codec=codec, width=8, batch_size=2)
    needs = footprint(spec, FOUR_MM, n_features=8, n_persons=30)
    trained = family in ("vae", "gan", "diffusion")
    assert (needs.parameters > 0) == (needs.flops_per_step > 0) == trained
    assert (needs.training_bytes > 0) == (trained or codec == "kl")
    assert 0 < needs.sampling_bytes < 1e9
    n_voxels = 2 * 40 * 48 * 40
    per_person = needs.disk_bytes / 30 / 4
    assert (
        per_person
        == {
            "pca": n_voxels + 2 * 29,
            "haar": 2 * n_voxels,
            "kl": n_voxels + 2 * 4 * (n_voxels // 2) // 8,
        }[codec]
    )


def test_too_little_memory_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = GeneratorSpec(codec="haar", batch_size=4)
    needs = memory.Footprint(
        parameters=1, training_bytes=21 * 10**9, sampling_bytes=1, flops_per_step=1, disk_bytes=1
    )
    monkeypatch.setattr(memory, "free_bytes", lambda device: 15 * 10**9)
    with pytest.raises(SettingError, match=r"21\.0 GB .* 15\.0 GB free.* batch_size to 2") as told:
        require_memory(needs, spec, torch.device("cpu"))
    assert "the machine" in str(told.value)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 22 * 10**9)
    require_memory(needs, spec, torch.device("cpu"))


def test_a_training_that_does_not_fit_ends_before_it_begins(
    cohort: Path, tmp_path: Path, quick: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    monkeypatch.setattr("rarescan.generative.families._SMALL", 1)
    with pytest.raises(SettingError, match="batch_size"):
        train_generator(cohort, tmp_path / "m", quick(codec="haar"), device="cpu")
    assert not (tmp_path / "m").exists()


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert free_bytes(torch.device("cpu")) == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 2_000_000
