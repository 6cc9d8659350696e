"""Stage 1: the autoencoder, 64 x 64 pixels to 16 x 16 latents of 8 channels, in SD's format.

Its encoder is the best linear one (`linear`) and stays as it is, so that the latents never move;
the decoder is then trained to do better than linear.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from pnp_batch.training import data
from pnp_batch.training.linear import GROUPS, LinearAutoencoder, LinearTask, install
from pnp_batch.training.loop import Run, Settings

CHANNELS = 8
NOISE = 0.05


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder, four times smaller in each direction."""
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=GROUPS,
        sample_size=64,
        scaling_factor=1.0,
    )


def load_vae(folder: Path) -> AutoencoderKL:
    """The autoencoder saved in ``folder``, ready for use."""
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder).eval()
    return vae


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB; pictures from -1 to 1."""
    mse = ((a.clamp(-1, 1) - b) ** 2).mean((1, 2, 3)).clamp_min(1e-10) / 4
    return float((-10 * mse.log10()).mean())


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: data.Pictures, device: torch.device) -> Tensor:
    """The mean latents of all pictures, shape (n, 8, 16, 16), float16 on the CPU."""
    parts = torch.arange(len(pictures)).split(64)
    return torch.cat(
        [vae.encode(pictures.batch(part, device)).latent_dist.mean.half().cpu() for part in parts]
    )


def train_encoder(work: Path, settings: Settings, batch: int = 24, device: str = "cpu") -> None:
    """Finds the linear autoencoder, installs it as ``work/vae/start`` and caches all latents."""
    pictures = data.load(work / "data")
    held_out = data.load(work / "data", held_out=True)
    shown = [torch.from_numpy(p.images).permute(0, 3, 1, 2) for p in (pictures, held_out)]
    task = LinearTask(shown[0], shown[1][:256], CHANNELS, batch)
    linear = Run(task, settings, work / "linear").finish()
    assert isinstance(linear, LinearAutoencoder)
    vae, where = new_vae(), torch.device(device)
    install(linear, vae, pictures.batch(torch.arange(min(512, len(pictures))), torch.device("cpu")))
    vae.save_pretrained(work / "vae" / "start")
    vae.to(where).eval()
    torch.save(encode(vae, pictures, where), work / "vae" / "latents.pt")
    torch.save(encode(vae, held_out, where), work / "vae" / "held_out.pt")


class DecoderTask:
    """Reconstruction in brightness, gradients and hue, from latents with a little noise."""

    def __init__(self, work: Path, batch: int = 12, device: str = "cpu") -> None:
        """Reads pictures and cached latents of ``work``."""
        self.device, self.size = torch.device(device), batch
        self.pictures = data.load(work / "data")
        self.held_out = data.load(work / "data", held_out=True)
        self.latents: Tensor = torch.load(work / "vae" / "latents.pt", weights_only=True)
        self.shown: Tensor = torch.load(work / "vae" / "held_out.pt", weights_only=True)
        vae = load_vae(work / "vae" / "start")
        self.module: nn.Module = Decoder(vae).to(self.device)

    def loss(self, generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """One batch; hue counts extra because small coloured objects are what text asks for."""
        index = torch.randint(len(self.pictures), (self.size,), generator=generator)
        x = self.pictures.batch(index, self.device)
        z = self.latents[index].float()
        z = z + NOISE * torch.randn(z.shape, generator=generator)
        error = self.module(z.to(self.device)) - x
        across, down = error.diff(dim=-1).abs().mean(), error.diff(dim=-2).abs().mean()
        hue = (error - error.mean(1, keepdim=True)).abs().mean()
        square = error.square().mean()
        loss = 10 * square + error.abs().mean() + 0.3 * (across + down) + hue
        return loss, {"psnr": float(-10 * torch.log10(square.detach() / 4)), "hue": hue.item()}

    @torch.no_grad()
    def measure(self, average: nn.Module) -> dict[str, float]:
        """PSNR on 256 held-out pictures."""
        x = self.held_out.batch(torch.arange(min(256, len(self.held_out))), self.device)
        z = self.shown[: len(x)].float().to(self.device)
        y = torch.cat([average(part) for part in z.split(64)])
        return {"held_out_psnr": psnr(y, x)}


class Decoder(nn.Module):
    """The part of an autoencoder that is trained here."""

    def __init__(self, vae: AutoencoderKL) -> None:
        """Takes the decoder and the convolution before it."""
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, z: Tensor) -> Tensor:
        """Latents (n, 8, 16, 16) to pictures (n, 3, 64, 64)."""
        pictures: Tensor = self.decoder(self.post_quant_conv(z))
        return pictures


def train_decoder(work: Path, settings: Settings, batch: int = 12, device: str = "cpu") -> None:
    """Trains into ``work/vae``; then ``work/vae/model`` is the finished autoencoder."""
    average = Run(DecoderTask(work, batch, device), settings, work / "vae").finish()
    finish_vae(work, average.state_dict())


def finish_vae(work: Path, decoder: dict[str, Tensor]) -> None:
    """Saves the encoder of ``work/vae/start`` with the given decoder as ``work/vae/model``."""
    vae = load_vae(work / "vae" / "start")
    Decoder(vae).load_state_dict(decoder)
    vae.save_pretrained(work / "vae" / "model")
