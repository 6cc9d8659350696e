"""Provenance: what an image file tells of how it was made, in every format and of hostile rows."""

from __future__ import annotations

import hashlib
import io
import json
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pnp_batch import __version__, cli, provenance, results, sink
from pnp_batch.config import IMAGE_FORMATS
from pnp_batch.provenance import EDITED, GENERATED, TOLD
from pnp_batch.source import SourcePolicy, decode
from pnp_batch.storage import Storage
from tests.pictures import PNG, picture, pixels, png_chunk, saved

# Of no use to who gets a picture, different each time, or of the machine that made it.
UNTOLD = {
    *("image", "status", "error_type", "error_message", "output", "width", "height", "sha256"),
    *("member", "latents_key", "seconds", "row_hash", "recorded_at"),
}
MODEL = "m" * 64
ROW = {
    "row_id": "a",
    "image": "/data/somebody/secret/a.png?token=s3cret",
    "prompt": "a röd cat 🐈",
    "method": "pnp",
    "status": "ok",
    "width": 40,
    "height": 30,
    "seed": 5,
    "source_sha256": "5" * 64,
    "latents_key": "k" * 64,
    "seconds": 1.25,
    "negative_prompt": "",
    "guidance_scale": 7.5,
    "pnp_f_t": 0.8,
    "pnp_attn_t": 0.5,
    "steps": 50,
    "inversion_steps": 50,
    "deep_every": 1,
    "resolution": 40,
    "fit": "crop",
    "row_hash": "h" * 32,
}
HOSTILE = {
    "markup": "<script>alert(1)</script> & \"quoted\" ]]> <?xpacket end='w'?> <!--",
    "control": "a\0b\x1b[31mc\x7f\x85\ufffe\u202e\n\td",
    "surrogate": "half \ud83d of a pair",
    "long": "long 🐈" * 20_000,
    "empty": "",
}


def written(folder, image_format="png", digest: str | None = MODEL, **values) -> bytes:
    """The file that the sink writes of a row."""
    row = {**ROW, **values}
    surrogates = [name for name, value in row.items() if isinstance(value, str)]
    row |= {name: row[name].encode("utf-8", "replace").decode() for name in surrogates}
    table = pa.Table.from_pylist([row], results.SCHEMA)
    painted = pa.array([picture().tobytes()], pa.binary())
    output = Storage(str(folder))
    done = sink.write(
        table.append_column("pixels", painted), output, image_format, results.SCHEMA, digest
    ).to_pylist()[0]
    data = output.read(done["output"])
    assert hashlib.sha256(data).hexdigest() == done["sha256"]
    return data


def xmp_of(data: bytes) -> ElementTree.Element:
    """The XMP packet of a file, found and parsed without our own code."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        packet = image.info.get("XML:com.adobe.xmp") or image.info["xmp"]
    text = packet.decode() if isinstance(packet, bytes) else packet
    assert text.startswith("<?xpacket begin=")
    return ElementTree.fromstring(text.replace("\ufeff", ""))


def told(packet: ElementTree.Element, name: str) -> str | None:
    """The text of an element of a packet, by its local name."""
    return next((e.text for e in packet.iter() if e.tag.endswith("}" + name)), None)


def test_every_column_of_the_results_is_told_or_is_known_not_to_be():
    assert set(TOLD) | UNTOLD == set(results.SCHEMA.names)
    assert not set(TOLD) & UNTOLD


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_an_image_tells_how_it_was_made(image_format, tmp_path):
    data = written(tmp_path, image_format)
    expected = {name: ROW[name] for name in TOLD if name in ROW}
    expected |= {"model_digest": MODEL, "digital_source_type": EDITED}
    expected["software"] = f"pnp-batch {__version__}"
    assert provenance.read(data) == expected

    packet = xmp_of(data)
    assert told(packet, "CreatorTool") == f"pnp-batch {__version__}"
    assert told(packet, "DigitalSourceType") == EDITED
    assert told(packet, "AIPromptInformation") == ROW["prompt"]
    assert (
        told(packet.find(".//{http://purl.org/dc/elements/1.1/}description"), "li")
        == (ROW["prompt"])
    )
    with Image.open(io.BytesIO(data)) as image:
        if image_format == "png":
            assert image.text["Software"] == f"pnp-batch {__version__}"
        else:
            assert image.getexif()[0x0131] == f"pnp-batch {__version__}"
            assert image.getexif()[0x010E] == "a r?d cat ?"


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_it_changes_no_pixel_and_is_the_same_each_time(image_format, tmp_path):
    data = written(tmp_path / "one", image_format)
    plain = written(tmp_path / "plain", image_format, digest=None)
    again = written(tmp_path / "two", image_format, seconds=9.0, image="/tmp/b.png")
    assert data == again
    assert data != plain
    assert len(data) - len(plain) < 4000
    policy = SourcePolicy(base=".")
    assert np.array_equal(pixels(decode(data, policy)), pixels(decode(plain, policy)))


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_without_it_an_image_carries_nothing(image_format, tmp_path):
    data = written(tmp_path, image_format, digest=None)
    assert provenance.read(data) is None
    for word in (b"pnp-batch", b"xpacket", b"cat"):
        assert word not in data


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_no_place_and_no_secret_is_told(image_format, tmp_path):
    data = written(tmp_path, image_format)
    for word in (b"somebody", b"secret", b"token", str(tmp_path).encode(), b"1.25"):
        assert word not in data


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_texts_break_neither_file_nor_xml(kind, image_format, tmp_path):
    text = HOSTILE[kind]
    texts = dict.fromkeys(("prompt", "negative_prompt", "source_prompt", "row_id"), text or "x")
    data = written(tmp_path, image_format, **texts)
    assert decode(data, SourcePolicy(base=".")).size == (40, 30)
    found = provenance.read(data)["prompt"]
    described = told(xmp_of(data), "AIPromptInformation")
    if kind == "long":
        longest = 1000 if image_format == "jpg" else 100_000
        assert found == described == text[: longest - 1] + "…"
    else:
        assert found == (text or "x").encode("utf-8", "replace").decode()
        assert len(described) == len(found)
    if kind == "markup":
        assert described == text
    if kind == "control":
        assert described.startswith("a�b�[31mc\x7f\x85�\u202e")


def test_the_source_type_follows_from_what_was_done_with_which_guidance():
    made = provenance.digital_source_type
    assert made(ROW) == EDITED
    assert made({**ROW, "source_sha256": None}) == GENERATED
    copy = {**ROW, "method": "copy", "steps": None}
    assert made(copy) is None
    assert made({**copy, "source_sha256": None}) == GENERATED


def test_a_copy_does_not_claim_to_show_the_prompt_or_to_come_from_a_model(tmp_path):
    data = written(tmp_path, method="copy", steps=None)
    packet = xmp_of(data)
    for name in ("DigitalSourceType", "AIPromptInformation", "description"):
        assert told(packet, name) is None
    assert "model_digest" not in provenance.read(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        PNG,
        saved(picture(), "JPEG"),
        saved(picture(), "GIF"),
        PNG[:40],
        PNG[:8] + png_chunk(b"IHDR", bytes(13)) + PNG[33:],
        *(
            PNG[:33] + png_chunk(b"tEXt", b"pnp-batch\0" + text) + PNG[33:]
            for text in (b"", b"[]", b"{}", b'{"software": 3}', b"{" * 100_000, b"[" * 100_000)
        ),
    ],
)
def test_what_is_no_picture_of_ours_has_no_provenance(data):
    assert provenance.read(data) is None


def test_the_command_shows_it_as_text_and_as_json(tmp_path, capsys):
    (tmp_path / "ours.png").write_bytes(written(tmp_path / "out", prompt="a\x1b[31m\x9bcat"))
    (tmp_path / "other.png").write_bytes(PNG)
    files = [f"{tmp_path}/ours.png", f"{tmp_path}/other.png"]
    for flags in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["provenance", *files, *flags])
        assert not ended.value.code
        out = capsys.readouterr().out
        assert "\x1b" not in out
        if flags:
            first, second = json.loads(out)["files"]
            assert first["provenance"]["prompt"] == "a\x1b[31m\x9bcat"
            assert second == {"file": files[1], "provenance": None}
        else:
            assert '"steps": 50' in out
            assert r"a\u001b[31m\x9bcat" in out
            assert f"{files[1]}: no provenance" in out


def test_the_command_refuses_what_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["provenance", f"{tmp_path}/gone.png"])
    assert ended.value.code == 4
    assert "gone.png: no such file" in capsys.readouterr().err
