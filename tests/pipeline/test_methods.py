"""Other methods than Plug-and-Play in the main job: what their rows give and record."""

from __future__ import annotations

import numpy as np
import torch

from pnp_batch.models import StableDiffusion, find
from pnp_batch.storage import Storage
from tests import reference
from tests.pipeline.conftest import Jobs, pixels, rows_of


def test_sdedit_rows_have_their_own_strength_and_leave_no_latents(jobs: Jobs) -> None:
    image = jobs.picture("a.png", 1)
    own = {"image": "a.png", "prompt": "a cat"}
    manifest = jobs.manifest(
        [
            {"row_id": "job", **own, "seed": 5, "strength": None},
            {"row_id": "none", **own, "strength": 0.0},
            {"row_id": "half", **own, "seed": 5, "strength": 0.5, "negative_prompt": "x"},
            {"row_id": "beyond", **own, "strength": 1.5},
            {"row_id": "drawn", "image": None, "source_prompt": "a car", "prompt": ["a", "b"]},
        ]
    )
    result = jobs.run(manifest, method="sdedit", strength=1.0)
    rows = rows_of(result.output)
    names = ("strength", "steps", "inversion_steps", "pnp_f_t", "latents_key", "error_type")
    assert {name: [row[n] for n in names] for name, row in rows.items()} == {
        "job": [1.0, 4, None, None, None, None],
        "none": [0.0, 4, None, None, None, None],
        "half": [0.5, 4, None, None, None, None],
        "beyond": [1.5, 4, None, None, None, "InvalidRow"],
        "drawn-0": [1.0, 4, None, None, None, None],
        "drawn-1": [1.0, 4, None, None, None, None],
    }
    assert result.progress.inverted == 0
    assert not Storage(result.output).files("latents")

    model = StableDiffusion(find(str(jobs.model)))
    x0 = model.encode(image)[None]
    noise = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(5))[None]
    schedule = reference.noise_schedule(model.files.configs["scheduler"], 4)
    for name, strength, negative in (("job", 1.0, ""), ("none", 0.0, ""), ("half", 0.5, "x")):
        edit = reference.Edit(model.text("a cat")[None], model.text(negative)[None], 7.5, 0, 0)
        made = reference.sdedit(model.unet, x0, noise, strength, edit, schedule)
        expected = np.asarray(model.decode(made[0])).astype(int)
        assert np.abs(pixels(result.output, rows[name]) - expected).max() <= 1
