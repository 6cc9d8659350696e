"""Group normalisation for GPUs: the same values from a kernel that is several times faster.

PyTorch's own reads a group's mean and deviation number by number; its layer normalisation reads
them in vectors, and a group of a contiguous feature map is one row to it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class RowGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` (Wu & He, arXiv 1803.08494, eq. 1, 7) by way of layer normalisation."""

    @classmethod
    def of(cls, norm: nn.GroupNorm) -> RowGroupNorm:
        """The same normalisation, with the same weights."""
        made = cls(norm.num_groups, norm.num_channels, norm.eps, norm.affine, device="meta")
        made.weight, made.bias = norm.weight, norm.bias
        return made.train(norm.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `nn.GroupNorm`, of a feature map (B, C, ...)."""
        if not x.is_contiguous():
            return super().forward(x)
        width = x.flatten(1).shape[1] // self.num_groups
        rows = x.view(len(x) * self.num_groups, width)
        scaled = F.layer_norm(rows, rows.shape[1:], eps=self.eps).view_as(x)
        if not self.affine:
            return scaled
        shape = (1, -1, *[1] * (x.ndim - 2))
        return torch.addcmul(self.bias.view(shape), scaled, self.weight.view(shape))


def by_rows(module: nn.Module) -> None:
    """Puts it in the place of every `nn.GroupNorm` of a module."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.GroupNorm:
                setattr(parent, name, RowGroupNorm.of(child))
