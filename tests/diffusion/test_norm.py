"""Group normalisation by rows: the values of PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pnp_batch.diffusion.norm import RowGroupNorm, by_rows
from pnp_batch.diffusion.unet import UNet
from tests import tiny
from tests.diffusion.scene import TOLERANCE, both_schedules, far, rows


def norm(*, affine=True):
    own = nn.GroupNorm(4, 12, eps=0.3, affine=affine)
    if affine:
        generator = torch.Generator().manual_seed(0)
        own.weight.data = torch.randn(12, generator=generator)
        own.bias.data = torch.randn(12, generator=generator)
    return own


def feature_map(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 3


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3, 12, 5, 7), (1, 12, 1, 1), (2, 12, 9), (0, 12, 5, 7)])
def test_values_are_those_of_pytorch(shape, affine):
    own, x = norm(affine=affine), feature_map(*shape)
    assert torch.allclose(RowGroupNorm.of(own)(x), own(x), atol=1e-5)


def test_a_map_that_is_not_contiguous_is_as_well():
    x = feature_map(3, 12, 5, 7).to(memory_format=torch.channels_last)
    assert torch.allclose(RowGroupNorm.of(norm())(x), norm()(x), atol=1e-5)


def test_it_shares_the_weights_and_passes_gradients():
    own, x = norm(), feature_map(2, 12, 3, 3).requires_grad_()
    made = RowGroupNorm.of(own)
    assert made.weight is own.weight
    wanted = torch.autograd.grad(own(x).square().sum(), x)[0]
    assert torch.allclose(torch.autograd.grad(made(x).square().sum(), x)[0], wanted, atol=1e-4)


def test_a_model_whose_norms_are_replaced_translates_as_before():
    schedule, _ = both_schedules(2)
    unet, some = tiny.new_unet("sd1"), rows(2, [0, 1, 1])
    expected = some.translated(UNet(unet), schedule, 1, 1)
    by_rows(unet)
    assert not any(type(module) is nn.GroupNorm for module in unet.modules())
    assert 0 < far(some.translated(UNet(unet), schedule, 1, 1), expected) < TOLERANCE
