"""Decoder layers as text: what names them, what does not, and one text for each set of them."""

from __future__ import annotations

import pytest

from pnp_batch.errors import InvalidConfig
from pnp_batch.layers import ATTENDING, ATTENTION, DECODER, FEATURES, canonical, parsed
from pnp_batch.methods import get
from pnp_batch.parameters import OPTIONS, resolved

PNP = get("pnp")


@pytest.mark.parametrize(
    ("text", "layers", "form"),
    [
        ("4", (4,), "4"),
        ("4,7-9", (4, 7, 8, 9), "4,7-9"),
        (" 9, 8 ,7,4,4 ", (4, 7, 8, 9), "4,7-9"),
        ("0-11", tuple(range(12)), "0-11"),
        ("3 - 5,4-6", (3, 4, 5, 6), "3-6"),
        ("10,11", (10, 11), "10-11"),
        ("5-5", (5,), "5"),
    ],
)
def test_a_text_names_layers_and_has_one_form(text, layers, form):
    assert parsed("pnp_f_layers", text) == layers
    assert canonical("pnp_f_layers", text) == form
    assert parsed("pnp_f_layers", form) == layers


BAD = ["", " ", "12", "4,", "-1", "4-", "5-4", "4;5", "four", "4,x", "1-2-3"]


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("name", ["pnp_f_layers", "pnp_attn_layers"])
def test_what_names_no_layers_is_refused_by_name(name, text):
    values = {**resolved(PNP, {}), name: text}
    for refuses in (PNP.check, lambda found: resolved(PNP, found)):
        with pytest.raises(InvalidConfig, match=f"^{name}: {text!r}") as refused:
            refuses(values)
        assert refused.value.hint


def test_attention_is_in_no_layer_of_the_first_block():
    assert resolved(PNP, {"pnp_f_layers": "2"})["pnp_f_layers"] == "2"
    with pytest.raises(InvalidConfig, match="pnp_attn_layers") as refused:
        PNP.check({**resolved(PNP, {}), "pnp_attn_layers": "2-11"})
    assert "3 to 11" in refused.value.hint
    assert (*DECODER[:3], *ATTENDING) == DECODER


def test_defaults_are_the_published_layers():
    values = resolved(PNP, {})
    assert parsed("pnp_f_layers", values["pnp_f_layers"]) == FEATURES == (4,)
    assert parsed("pnp_attn_layers", values["pnp_attn_layers"]) == ATTENTION == tuple(range(4, 12))


def test_a_number_as_yaml_reads_it_is_a_text():
    assert resolved(PNP, {"pnp_f_layers": 7})["pnp_f_layers"] == "7"
    for value in (True, 7.0, [7]):
        with pytest.raises(InvalidConfig, match="pnp_f_layers: expected str"):
            OPTIONS["pnp_f_layers"].checked("pnp_f_layers", value)
    with pytest.raises(InvalidConfig, match="negative_prompt: expected str"):
        OPTIONS["negative_prompt"].checked("negative_prompt", 7)
