"""The autoencoder: 64 x 64 x 3 to 16 x 16 x 4, an `AutoencoderKL`."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from zoo.data import HELD_OUT, TRAIN, floats, pool
from zoo.loop import Task, fit


def build() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=64,
    )


def train(minutes: float, work: Path, target: Path, n: int = 40_000, batch: int = 8) -> None:
    """Train, set the scaling factor to one over the latents' standard deviation, save to `target`."""
    torch.manual_seed(0)
    images, held = pool(n, TRAIN, work).images, floats(pool(256, HELD_OUT, work).images)
    model = build()

    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (batch,), generator=draw)
        x = floats(images[rows])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(x).latent_dist
            latent = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=draw)
            y = model.decode(latent).sample
        error = y.float() - x
        edges = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
        divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
        total: Tensor = error.abs().mean() + 2 * error.square().mean() + 0.3 * edges + 5e-4 * divergence
        return total

    def validate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, AutoencoderKL)
        with torch.no_grad():
            y = module.decode(module.encode(held).latent_dist.mean).sample.clamp(-1, 1)
        mse = F.mse_loss(y / 2, held / 2, reduction="none").mean((1, 2, 3))
        return {"psnr": float(-10 * mse.log10().mean())}

    final = fit(Task("autoencoder", model, loss, validate, learning_rate=1e-3), minutes, work)
    assert isinstance(final, AutoencoderKL)
    with torch.no_grad():
        latents = torch.cat([final.encode(floats(part)).latent_dist.mean for part in images[:2000].split(100)])
    print("latent std by channel", latents.std((0, 2, 3)).tolist(), flush=True)
    final.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    final.half().save_pretrained(target / "vae")
