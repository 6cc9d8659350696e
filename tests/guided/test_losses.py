"""The losses against formulas written out, and the walk down their gradient."""

from __future__ import annotations

import math

import pytest
import torch

from pnp_batch.diffusion import losses
from tests.guided.scene import pixels


def vectors(*shape: int, seed: int = 0, unit: bool = True) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=-1, keepdim=True) if unit else drawn


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum()) / math.sqrt(float((a * a).sum()) * float((b * b).sum()))


def test_spherical_is_half_the_squared_angle():
    a, b = vectors(4, 7), vectors(4, 7, seed=1)
    for found, one, other in zip(losses.spherical(a, b), a, b, strict=True):
        assert float(found) == pytest.approx(math.acos(cosine(one, other)) ** 2 / 2, rel=1e-4)
    at = a.clone().requires_grad_()
    (slope,) = torch.autograd.grad(losses.spherical(at, a).sum(), at)
    assert slope.isfinite().all()


def test_direction_compares_the_changes():
    image, source, text, told = (vectors(3, 7, seed=n) for n in range(4))
    for n, found in enumerate(losses.direction(image, source, text, told)):
        expected = 1 - cosine(image[n] - source[n], text[n] - told[n])
        assert float(found) == pytest.approx(expected, abs=1e-5)
    assert losses.direction(source, source, text, told).isfinite().all()


def keys(seed: int) -> torch.Tensor:
    return vectors(2, 5, 6, seed=seed, unit=False)


def test_structure_compares_cosines_within_each_picture():
    a, b = keys(1), keys(2)
    for n, found in enumerate(losses.structure(a, b)):
        total = 0.0
        for i in range(5):
            for j in range(5):
                total += (cosine(a[n, i], a[n, j]) - cosine(b[n, i], b[n, j])) ** 2
        assert float(found) == pytest.approx(total / 25, rel=1e-4)
    assert losses.structure(a, 3 * a).abs().max() < 1e-6


def test_contrast_finds_each_place_among_all_of_the_source():
    a, b = keys(1), keys(2)
    for n, found in enumerate(losses.contrast(a, b)):
        total = 0.0
        for i in range(5):
            scores = [math.exp(cosine(a[n, i], b[n, j]) / 0.07) for j in range(5)]
            total -= math.log(scores[i] / sum(scores))
        assert float(found) == pytest.approx(total / 5, rel=1e-4)


def test_perceptual_is_the_distance_of_unit_tokens():
    a, b = (keys(1), keys(2)), (keys(3), keys(4))
    found = losses.perceptual(a, b)
    for n in range(2):
        layers = []
        for one, other in zip(a, b, strict=True):
            layers.append(sum(2 - 2 * cosine(one[n, i], other[n, i]) for i in range(5)) / 5)
        assert float(found[n]) == pytest.approx(sum(layers) / 2, rel=1e-4)


def test_beyond_is_what_sticks_out():
    told = torch.zeros(2, 3, 1, 2)
    told[0, 0, 0, 0], told[0, 1, 0, 1], told[1, 2, 0, 0] = 3.0, -2.0, 1.0
    assert losses.beyond(told).tolist() == pytest.approx([(4 + 1) / 6, 0.0])


def test_what_is_shown_is_clamped_and_may_come_back():
    at = torch.tensor([-2.0, -2.0, 0.5, 2.0, 2.0], requires_grad=True)
    shown = losses.shown(at)
    assert shown.tolist() == [-1, -1, 0.5, 1, 1]
    # A step goes against the gradient: +1 lowers a value, -1 raises it.
    (slope,) = torch.autograd.grad(shown, at, torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]))
    assert slope.tolist() == [0, -1, 1, 1, 0]


def test_the_goal_is_text_less_source_text_and_a_little_image(sees):
    image = torch.cat([pixels(1), pixels(2)])
    found = losses.goal(sees, image, ["a cat", "a boat"], ["a house", ""])
    seen, (cat, boat, house) = sees.images(image), sees.texts(["a cat", "a boat", "a house"])
    assert (found[0] - (cat - 0.4 * house + 0.2 * seen[0])).abs().max() < 1e-6
    assert (found[1] - (boat + 0.2 * seen[1])).abs().max() < 1e-6


def test_descent_is_that_of_adam():
    begun, target = torch.tensor([[3.0, -1.0]]), torch.tensor([[1.0, 2.0]])

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (x - target).square().sum(1)

    x, m, v = [3.0, -1.0], [0.0, 0.0], [0.0, 0.0]
    for step in range(1, 6):
        for n in range(2):
            g = 2 * (x[n] - float(target[0, n]))
            m[n], v[n] = 0.9 * m[n] + 0.1 * g, 0.999 * v[n] + 0.001 * g * g
            x[n] -= 0.1 * (m[n] / (1 - 0.9**step)) / (math.sqrt(v[n] / (1 - 0.999**step)) + 1e-8)
    found = losses.descend(loss, begun, 5, 0.1)
    assert found[0].tolist() == pytest.approx(x, abs=1e-5)
    assert begun.tolist() == [[3.0, -1.0]]
    assert losses.descend(loss, begun, 0, 0.1).equal(begun)


def test_views_and_noise_of_a_seed_are_different_draws():
    plain = torch.Generator().manual_seed(5)
    own = losses.dice(5)
    assert not torch.rand(4, generator=plain).equal(torch.rand(4, generator=own))
    assert torch.rand(4, generator=losses.dice(5)).equal(torch.rand(4, generator=losses.dice(5)))
    losses.dice(-(2**62))
    losses.dice(2**63 - 1)
