"""Write the stored pairs of `tests/shared/monai_generative`, with the old package itself.

    pip download monai-generative==0.2.3 --no-deps -d /tmp/old && cd /tmp/old && unzip *.whl
    PYTHONSAFEPATH=1 PYTHONPATH=/tmp/old python tests/shared/make_monai_generative.py

One folder a row of the table of old networks: `weights.safetensors` (random, half precision; also
the projection that the old attention never applies), `network.json` (class and arguments as the
old package names them), `pair.safetensors` (input, and the old network's output).
"""

import importlib
import json
from pathlib import Path
from typing import Any

import monai.config
import monai.utils
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent / "monai_generative"
SMALL = {"in_channels": 1, "out_channels": 1, "num_channels": [4, 4], "norm_num_groups": 2}
AUTOENCODER = {**SMALL, "num_res_blocks": 1, "latent_channels": 2}
UNET = {**SMALL, "num_res_blocks": 1, "num_head_channels": 2}
NO_NONLOCAL = {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder": (
        "AutoencoderKL",
        {**AUTOENCODER, **NO_NONLOCAL, "attention_levels": [False, False]},
    ),
    "autoencoder-attention": ("AutoencoderKL", {**AUTOENCODER, "attention_levels": [False, True]}),
    "unet": ("DiffusionModelUNet", {**UNET, "attention_levels": [False, True]}),
    "unet-updown": (
        "DiffusionModelUNet",
        {**UNET, "attention_levels": [False, False], "resblock_updown": True},
    ),
    "unet-cross": (
        "DiffusionModelUNet",
        {
            **UNET,
            "attention_levels": [False, True],
            "with_conditioning": True,
            "cross_attention_dim": 3,
        },
    ),
    "vqvae": (
        "VQVAE",
        {
            "in_channels": 1,
            "out_channels": 1,
            "num_channels": [4, 4],
            "num_res_channels": [4, 4],
            "num_res_layers": 1,
            "downsample_parameters": [[2, 4, 1, 1], [2, 4, 1, 1]],
            "upsample_parameters": [[2, 4, 1, 1, 0], [2, 4, 1, 1, 0]],
            "num_embeddings": 8,
            "embedding_dim": 4,
        },
    ),
}


def main() -> None:
    """Write every row in two and three dimensions."""
    torch.manual_seed(0)
    # The old package looks for it where MONAI had it in 2023.
    monai.config.IgniteInfo = monai.utils.IgniteInfo
    nets = importlib.import_module("generative.networks.nets")
    for name, (kind, arguments) in ROWS.items():
        for dimensions in (2, 3):
            given = {"spatial_dims": dimensions, **arguments}
            network = getattr(nets, kind)(**given).eval()
            random = torch.Generator().manual_seed(dimensions)
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=random)
                parameter.data = (0.2 * noise + (parameter.ndim == 1)).half().float()
            inputs = {"x": torch.randn(1, 1, *[8] * dimensions, generator=random)}
            if kind == "DiffusionModelUNet":
                inputs["timesteps"] = torch.tensor([300.0])
            if arguments.get("with_conditioning"):
                inputs["context"] = torch.randn(1, 2, 3, generator=random)
            folder = HERE / f"{name}-{dimensions}d"
            folder.mkdir(parents=True, exist_ok=True)
            with torch.no_grad():
                write(folder, network, inputs, kind, given)


def write(
    folder: Path, network: Any, inputs: dict[str, Any], kind: str, given: dict[str, Any]
) -> None:
    """Write one row."""
    if kind == "AutoencoderKL":
        mean, sigma = network.encode(inputs["x"])
        outputs = {"mean": mean, "sigma": sigma, "reconstruction": network.decode(mean)}
    elif kind == "VQVAE":
        outputs = {"reconstruction": network(inputs["x"])[0]}
    else:
        outputs = {"output": network(**inputs)}
    pair = {f"input.{k}": v for k, v in inputs.items()}
    pair |= {f"output.{k}": v.contiguous() for k, v in outputs.items()}
    save_file(pair, folder / "pair.safetensors")
    state = {k: v.detach().half().contiguous() for k, v in network.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    target = f"generative.networks.nets.{kind}"
    (folder / "network.json").write_text(json.dumps({"_target_": target, **given}, indent=1) + "\n")


if __name__ == "__main__":
    main()
