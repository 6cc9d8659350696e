"""Provenance: a recorded row in, what its picture says of how it was made; and back, out of a file.

All of it follows from the row, the model and this version, so that a picture written twice has the
same bytes; times, machines, paths and URIs are no part of it. Machines read it as JSON, in a PNG's
text or else the EXIF comment; picture software reads the XMP of the IPTC Photo Metadata Standard
2025.1 (https://iptc.org/std/photometadata/specification/IPTC-PhotoMetadata).
"""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as XML

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pnp_batch.errors import RowError
from pnp_batch.source import FORMATS
from pnp_batch.source.metered import MeteredBytes

KEY = "pnp-batch"
"""Of the JSON among the texts of a PNG; it is also what pictures call the software."""

# The columns of the results that a picture tells, as far as they shaped its row.
TOLD = (
    *("row_id", "prompt", "negative_prompt", "source_prompt", "method", "seed"),
    *("guidance_scale", "pnp_f_t", "pnp_attn_t", "strength", "parameters"),
    *("steps", "inversion_steps", "deep_every", "resolution", "fit", "source_sha256"),
)
# Characters of a text that a file may carry: metadata of a JPEG must fit into 64 KiB as JSON,
# where a character may take twelve bytes; what reads a PNG refuses megabytes of text.
LONGEST = {"jpg": 1000}
LONGEST_ELSEWHERE = 100_000

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED = _SOURCE_TYPES + "trainedAlgorithmicMedia"
EDITED = _SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"

_SOFTWARE_TAG, _DESCRIPTION_TAG, _EXIF_TAG, _COMMENT_TAG = 0x0131, 0x010E, 0x8769, 0x9286
_ASCII = b"ASCII\0\0\0"  # what an EXIF comment begins with
_SPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
}
# The identifier is the one that XMP's specification gives to every packet.
_PACKET = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{}<?xpacket end="r"?>'
_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

for _prefix, _uri in _SPACES.items():
    XML.register_namespace(_prefix, _uri)


def statement(row: Mapping[str, Any], model_digest: str, image_format: str) -> dict[str, Any]:
    """What the picture of a row says: `TOLD` without nulls, software, model and source type.

    Args:
        row: a row of the results that is `ok`.
        model_digest: of the model of the job; left out where no model was used.
        image_format: `png`, `jpg` or `webp`, which decides how long a text may be.
    """
    from pnp_batch import __version__

    longest = LONGEST.get(image_format, LONGEST_ELSEWHERE)
    told = {name: _cut(row[name], longest) for name in TOLD if row.get(name) is not None}
    source_type = digital_source_type(row)
    if source_type is not None:
        told |= {"model_digest": model_digest, "digital_source_type": source_type}
    return {"software": f"{KEY} {__version__}", **told}


def digital_source_type(row: Mapping[str, Any]) -> str | None:
    """The IPTC NewsCode of a row's picture; None for a guidance image that no model changed."""
    if row.get("source_sha256") is None:
        return GENERATED
    return None if row.get("steps") is None else EDITED


def carried(told: Mapping[str, Any], image_format: str) -> dict[str, Any]:
    """What Pillow's `save` takes so that a file of this format carries a statement."""
    text, packet = json.dumps(told), _packet(told)
    if image_format == "png":
        info = PngInfo()
        info.add_text("Software", told["software"])
        info.add_text(KEY, text)
        info.add_itxt("XML:com.adobe.xmp", packet)
        return {"pnginfo": info}
    exif = Image.Exif()
    exif[_SOFTWARE_TAG] = told["software"]
    # EXIF's own texts are ASCII; the JSON has every character.
    exif[_DESCRIPTION_TAG] = _described(told).encode("ascii", "replace").replace(b"\0", b"?")
    exif.get_ifd(_EXIF_TAG)[_COMMENT_TAG] = _ASCII + text.encode("ascii")
    return {"exif": exif.tobytes(), "xmp": packet.encode()}


def read(data: bytes) -> dict[str, Any] | None:
    """The statement that a picture file carries; None if it has none of ours, whatever it is.

    Only the file's head is read, and no pixel decoded. Anyone can write such a statement into a
    file, so that it is information, not proof.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(MeteredBytes(data), formats=FORMATS) as image:
                text = image.info.get(KEY)
                if text is None:
                    comment = image.getexif().get_ifd(_EXIF_TAG).get(_COMMENT_TAG, b"")
                    text = comment.removeprefix(_ASCII).decode("ascii")
        told = json.loads(text)
    # What Pillow and the parser raise on bytes that are no picture, or no statement.
    except (RowError, OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError):
        return None
    except (struct.error, RecursionError, MemoryError, Image.DecompressionBombError):
        return None
    ours = isinstance(told, dict) and str(told.get("software", "")).startswith(f"{KEY} ")
    return told if ours else None


def _cut(value: Any, longest: int) -> Any:  # noqa: ANN401 - a cell of any column
    if not isinstance(value, str):
        return value
    # A lone surrogate has no bytes in any encoding.
    whole = value.encode("utf-8", "replace").decode()
    return whole if len(whole) <= longest else whole[: longest - 1] + "…"


def _described(told: Mapping[str, Any]) -> str:
    """The prompt, of a picture that a model made; a copy does not show what it asks for."""
    return str(told.get("prompt", "")) if "digital_source_type" in told else ""


def _packet(told: Mapping[str, Any]) -> str:
    """A statement as XMP."""
    root = XML.Element(_named("x:xmpmeta"))
    about = XML.SubElement(XML.SubElement(root, _named("rdf:RDF")), _named("rdf:Description"))
    about.set(_named("rdf:about"), "")
    _add(about, "xmp:CreatorTool", told["software"])
    if "digital_source_type" in told:
        _add(about, "Iptc4xmpExt:DigitalSourceType", told["digital_source_type"])
        _add(about, "Iptc4xmpExt:AISystemUsed", f"{told['software']}, {told['method']}")
        _add(about, "Iptc4xmpExt:AISystemVersionUsed", told["model_digest"])
        _add(about, "Iptc4xmpExt:AIPromptInformation", _described(told))
        texts = XML.SubElement(XML.SubElement(about, _named("dc:description")), _named("rdf:Alt"))
        _add(texts, "rdf:li", _described(told)).set(
            "{http://www.w3.org/XML/1998/namespace}lang", "x-default"
        )
    return _PACKET.format(XML.tostring(root, encoding="unicode"))


def _add(parent: XML.Element, name: str, text: str) -> XML.Element:
    child = XML.SubElement(parent, _named(name))
    child.text = _NO_XML.sub("\ufffd", text)
    return child


def _named(name: str) -> str:
    prefix, _, local = name.partition(":")
    return f"{{{_SPACES[prefix]}}}{local}"
