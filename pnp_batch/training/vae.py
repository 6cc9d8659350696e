"""Stage 1: the autoencoder, 64 x 64 pixels to 16 x 16 latents of 8 channels, whitened and then frozen."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from pnp_batch.training import data
from pnp_batch.training.loop import Run, Settings

CHANNELS = 8


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder in Stable Diffusion's format, four times smaller in each direction."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
    )
    start_linear(vae)
    return vae


@torch.no_grad()
def start_linear(vae: AutoencoderKL) -> None:
    """Starts from a nearly linear network: silent residual branches, unit gain on the direct path.

    Hue and brightness then reach the latents at once: after 200 steps 4 dB ahead of the default.
    """
    direct = ("conv_shortcut", "samplers.0.conv", "conv_in", "conv_out", "quant_conv")
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if module.bias is not None:
            module.bias.zero_()
        if name.endswith(direct):
            module.weight *= 3**0.5
        if name.endswith(("conv2", "to_out.0")):
            module.weight.zero_()
    vae.quant_conv.weight[CHANNELS:] *= 0.1
    vae.quant_conv.bias[CHANNELS:] = -4


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB; pictures from -1 to 1."""
    mse = ((a.clamp(-1, 1) - b) ** 2).mean((1, 2, 3)).clamp_min(1e-10) / 4
    return float((-10 * mse.log10()).mean())


class VaeTask:
    """Reconstruction in brightness, gradients and hue, with a slight pull to a unit Gaussian."""

    def __init__(self, directory: Path, batch: int = 16, device: str = "cpu") -> None:
        """Reads the pictures drawn into ``directory``."""
        self.device, self.size = torch.device(device), batch
        self.pictures = data.load(directory)
        self.held_out = data.load(directory, held_out=True)
        self.module: nn.Module = new_vae().to(self.device, memory_format=torch.channels_last)

    def loss(self, generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """One batch; hue counts extra because small coloured objects are what text asks for."""
        index = torch.randint(len(self.pictures), (self.size,), generator=generator)
        x = self.pictures.batch(index, self.device)
        posterior = self.module.encode(x).latent_dist  # type: ignore[operator]
        noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
        y = self.module.decode(posterior.mean + posterior.std * noise).sample  # type: ignore[operator]
        error = y - x
        slopes = sum((a - b).abs().mean() for a, b in zip(gradients(y), gradients(x), strict=True))
        hue = (error - error.mean(1, keepdim=True)).abs().mean()
        kl = posterior.kl().mean() / x[0].numel()
        total = error.abs().mean() + 0.3 * slopes + 2 * error.square().mean() + hue
        ratio = -10 * torch.log10(error.detach().square().mean() / 4)
        return total + 1e-4 * kl, {"psnr": float(ratio), "kl": kl.item(), "hue": hue.item()}

    @torch.no_grad()
    def measure(self, average: nn.Module) -> dict[str, float]:
        """PSNR on 256 held-out pictures."""
        x = self.held_out.batch(torch.arange(min(256, len(self.held_out))), self.device)
        y = torch.cat([reconstruct(average, part) for part in x.split(64)])
        return {"held_out_psnr": psnr(y, x)}


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels, across and down."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruct(vae: nn.Module, x: Tensor) -> Tensor:
    """Pictures through the autoencoder, without noise."""
    mean = vae.encode(x).latent_dist.mean  # type: ignore[operator]
    result: Tensor = vae.decode(mean).sample  # type: ignore[operator]
    return result


@torch.no_grad()
def fold(vae: AutoencoderKL, latents: Tensor) -> None:
    """Writes the latents' mean and deviation per channel into the 1 x 1 convolutions around them.

    After this the latents (n, 8, 16, 16) of the same pictures have mean 0 and deviation 1, the
    decoder undoes it, and ``scaling_factor`` is truly 1.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    inward, outward, n = vae.quant_conv, vae.post_quant_conv, len(mean)
    inward.weight[:n] /= std[:, None, None, None]
    inward.bias[:n] = (inward.bias[:n] - mean) / std
    inward.bias[n:] -= 2 * std.log()
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight *= std[None, :, None, None]


@torch.no_grad()
def encode(vae: nn.Module, pictures: data.Pictures, device: torch.device) -> Tensor:
    """The mean latents of all pictures, shape (n, 8, 16, 16), float16 on the CPU."""
    parts = torch.arange(len(pictures)).split(64)
    encoded = [
        vae.encode(pictures.batch(part, device)).latent_dist.mean.half().cpu()  # type: ignore[operator]
        for part in parts
    ]
    return torch.cat(encoded)


def train(work: Path, settings: Settings, batch: int = 16, device: str = "cpu") -> None:
    """Trains into ``work/vae``; afterwards ``work/vae/model`` is whitened and the latents are cached."""
    task = VaeTask(work / "data", batch, device)
    average = Run(task, settings, work / "vae").finish()
    freeze(average, task, work)


def freeze(average: nn.Module, task: VaeTask, work: Path) -> None:
    """Whitens the averaged autoencoder, saves it and caches the training pictures' latents."""
    vae = new_vae().to(task.device, memory_format=torch.channels_last).eval()
    vae.load_state_dict(average.state_dict())
    sample = data.Pictures(task.pictures.images[:2048], task.pictures.captions[:2048])
    fold(vae, encode(vae, sample, task.device).float().to(task.device))
    vae.save_pretrained(work / "vae" / "model")
    torch.save(encode(vae, task.pictures, task.device), work / "vae" / "latents.pt")
    torch.save(encode(vae, task.held_out, task.device), work / "vae" / "held_out.pt")
