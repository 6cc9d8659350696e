"""Principal components, beside NumPy's singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pnp_batch.inspection.components import principal


def rows(count: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(3, 1, channels)
    return torch.randn(count, channels, generator=generator) * scales + 5


@pytest.mark.parametrize("shape", [(50, 7), (7, 50), (3, 2), (2, 9), (1, 4), (40, 40)])
def test_components_are_those_of_the_singular_value_decomposition(
    shape: tuple[int, int],
) -> None:
    values = rows(*shape)
    found = principal(values)
    centred = values.double().numpy() - values.double().numpy().mean(0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    there = min(3, shape[0] - 1, shape[1])
    expected = np.zeros((shape[0], 3))
    for k in range(there):
        sign = np.sign(right[k][np.abs(right[k]).argmax()])
        expected[:, k] = sign * left[:, k] * singular[k]
    np.testing.assert_allclose(found.scores.numpy(), expected, atol=1e-9)
    shares = np.zeros(3)
    if there:
        shares[:there] = (singular**2 / (singular**2).sum())[:there]
    np.testing.assert_allclose(found.explained, shares, atol=1e-12)


@pytest.mark.parametrize("shape", [(60, 8), (12, 30)])
def test_the_order_of_rows_only_orders_the_answer(shape: tuple[int, int]) -> None:
    values = rows(*shape)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(1))
    found, turned = principal(values), principal(values[order])
    torch.testing.assert_close(turned.scores, found.scores[order])
    torch.testing.assert_close(turned.colours(), found.colours()[order])


def test_colours_span_everything_but_the_extremes() -> None:
    values = torch.zeros(1001, 1)
    values[:, 0] = torch.arange(1001)
    values[-1] = 1e6  # one that would leave all others in the dark
    colours = principal(values).colours()
    assert colours.shape == (1001, 3)
    assert colours[:990, 0].max() > 0.9
    assert (colours.min(), colours.max()) == (0, 1)


def test_what_does_not_vary_is_grey() -> None:
    found = principal(torch.full((6, 4), 0.1))
    assert found.explained == (0, 0, 0)
    assert (found.colours() == 0.5).all()
    two = principal(torch.outer(torch.arange(8.0), torch.arange(5.0)))
    assert two.explained[0] == pytest.approx(1)
    assert (two.colours()[:, 1:] == 0.5).all()
