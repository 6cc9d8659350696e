"""Stage 3: the UNet, in Stable Diffusion 1's topology, learns to predict noise on latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pnp_batch.training import data
from pnp_batch.training.clip import WIDTH, tokenize
from pnp_batch.training.influence import influence
from pnp_batch.training.loop import Run, Settings
from pnp_batch.training.vae import CHANNELS

EMPTY_SHARE = 0.1
SNR_CAP = 5.0
WIDTHS = (32, 64, 128, 128)


def new_unet(widths: tuple[int, ...] = WIDTHS) -> UNet2DConditionModel:
    """An untrained UNet: four levels, two blocks each, the topology of Stable Diffusion 1."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    wake_deep_layers(unet)
    close_shortcut(unet)
    return unet


@torch.no_grad()
def wake_deep_layers(unet: UNet2DConditionModel) -> None:
    """Unit gain on the direct path and silent residual branches.

    With the default start the deep half of so small a network never matters to its output, and
    features injected there would do nothing.
    """
    direct = ("conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "proj_in")
    for name, module in unet.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if module.bias is not None:
            module.bias.zero_()
        if name.endswith(direct):
            module.weight *= 3**0.5
        if name.endswith(("conv2", "proj_out")):
            module.weight.zero_()


@torch.no_grad()
def close_shortcut(unet: UNet2DConditionModel) -> None:
    """Leaves no way around the feature that Plug-and-Play injects: what it does not say is lost.

    In a large model that feature carries the picture's layout; so small a network sends most of it
    through the shortcut beside the feature, and injecting it would show nothing.
    """
    blocks: Any = unet.up_blocks
    shortcut = blocks[1].resnets[1].conv_shortcut.requires_grad_(False)
    shortcut.weight.zero_()
    shortcut.bias.zero_()


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="epsilon",
    )


@torch.no_grad()
def embed(clip: Path, texts: list[str]) -> Tensor:
    """The text tower's output for ``texts``, shape (n, 24, 128), from the folder of stage 2."""
    tokenizer = CLIPTokenizer.from_pretrained(clip / "tokenizer")
    tower = CLIPTextModel.from_pretrained(clip / "model").eval()
    ids = tokenize(tokenizer, texts)
    return torch.cat([tower(part)[0].half() for part in ids.split(256)])


class UnetTask:
    """Noise prediction, min-SNR weights (Hang et al. 2023); one caption in ten is left empty."""

    def __init__(
        self,
        work: Path,
        batch: int = 32,
        device: str = "cpu",
        widths: tuple[int, ...] = WIDTHS,
    ) -> None:
        """Reads latents from ``work/vae`` and embeds the captions with ``work/clip``."""
        self.device, self.size = torch.device(device), batch
        self.latents: Tensor = torch.load(work / "vae" / "latents.pt", weights_only=True)
        self.held_out: Tensor = torch.load(work / "vae" / "held_out.pt", weights_only=True).float()
        captions = data.load_captions(work / "data")
        words = ["", *sorted(set(captions))]
        places = {text: k for k, text in enumerate(words)}
        self.texts = embed(work / "clip", words)
        self.caption = torch.tensor([places[text] for text in captions])
        told = data.load_captions(work / "data", held_out=True)
        self.told = embed(work / "clip", told).float()
        self.alpha_bar = new_scheduler().alphas_cumprod
        self.module: nn.Module = new_unet(widths).to(self.device)

    def loss(self, generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """One batch: noise at evenly spread times, weighted by the capped signal-to-noise ratio."""
        index = torch.randint(len(self.latents), (self.size,), generator=generator)
        silent = torch.rand(self.size, generator=generator) < EMPTY_SHARE
        text = self.texts[self.caption[index].masked_fill(silent, 0)].float()
        spread = torch.arange(self.size) + torch.rand(self.size, generator=generator)
        t = (spread * 1000 / self.size).long().clamp(max=999)
        x0 = self.latents[index].float()
        noise = torch.randn(x0.shape, generator=generator)
        error = self.errors(self.module, x0, noise, t, text)
        ratio = self.alpha_bar[t] / (1 - self.alpha_bar[t])
        weight = (ratio.clamp(max=SNR_CAP) / ratio).to(self.device)
        return (weight * error).mean(), {"eps_mse": error.mean().item()}

    def errors(self, unet: nn.Module, x0: Tensor, noise: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """Mean squared error of the predicted noise for each picture, shape (n,)."""
        alpha = self.alpha_bar[t][:, None, None, None]
        noisy = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
        here = self.device
        predicted = unet(noisy.to(here), t.to(here), text.to(here)).sample
        error: Tensor = (predicted - noise.to(here)).square().mean((1, 2, 3))
        return error

    @torch.no_grad()
    def measure(self, average: nn.Module) -> dict[str, float]:
        """Held-out error at four times with fixed noise, and the layers' influence at two."""
        n = min(32, len(self.held_out) // 2)
        noise = torch.randn(self.held_out[:n].shape, generator=torch.Generator().manual_seed(0))
        numbers = {}
        for time in (101, 301, 501, 701, 901):
            t = torch.full((n,), time)
            error = self.errors(average, self.held_out[:n], noise, t, self.told[:n]).mean()
            numbers[f"held_out_{time}"] = error.item()
        empty = self.texts[:1].float().to(self.device)
        pair = (self.held_out[:n].to(self.device), self.held_out[n : 2 * n].to(self.device))
        for time in (701, 901):
            found = influence(average, pair, empty, time, float(self.alpha_bar[time]))
            numbers |= {f"{name}_{time}": value for name, value in found.items()}
        return numbers


def train(work: Path, settings: Settings, batch: int = 32, device: str = "cpu") -> None:
    """Trains into ``work/unet``; then ``work/unet/model`` holds the averaged weights."""
    run = Run(UnetTask(work, batch, device), settings, work / "unet")
    average = run.finish()
    if not run.rank:
        unet = new_unet()
        unet.load_state_dict(average.state_dict())
        unet.save_pretrained(work / "unet" / "model")
