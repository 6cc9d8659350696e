"""Texts from strangers: files, prompts and values of entries in, checked texts out."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from pnp_batch.building.refusal import NotBuilt
from pnp_batch.errors import WrongUsage
from pnp_batch.storage import Storage


def read_bytes(uri: str) -> bytes:
    """The bytes of a file that a builder is given.

    Raises:
        NotBuilt: there is none.
    """
    folder, name = posixpath.split(uri)
    try:
        data = Storage(folder or ("/" if uri.startswith("/") else ".")).read_if_there(name)
    except ValueError:  # a NUL byte
        data = None
    if data is None:
        raise NotBuilt(f"{uri}: no such file", "check the path")
    return data


def read_text(uri: str) -> str:
    """The text of a file that a builder is given. Raises `NotBuilt` also where it is not UTF-8."""
    try:
        return read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotBuilt(
            f"{uri}: not UTF-8 at byte {error.start}", "save the file as UTF-8"
        ) from error


def gathered(texts: Iterable[str], file: str | None) -> list[str]:
    """The texts, then those of a file: one a line, empty lines left out.

    Raises:
        NotBuilt: the file cannot be read.
        WrongUsage: there are none.
    """
    found = [*texts, *(read_text(file).splitlines() if file else ())]
    prompts = [text.strip() for text in found if text.strip()]
    if not prompts:
        told = f"{file} holds no prompts" if file else "no prompts"
        raise WrongUsage(told, "give --prompt TEXT, or --prompts FILE with one a line")
    return prompts


def text_of(entry: Mapping[str, Any], key: str, where: str) -> str | None:
    """A text of an entry, None where there is none or it is empty.

    Raises:
        NotBuilt: it is no text that a manifest can hold.
    """
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise NotBuilt(
            f"{where}: {key} is {type(value).__name__}", "expected a text; put it in quotes"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise NotBuilt(f"{where}: {key} holds half a character", "mend the text") from error
    return value.strip() or None
