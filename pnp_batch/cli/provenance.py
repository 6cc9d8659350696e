"""`provenance`: what image files say of how they were made."""

from __future__ import annotations

import json

import click

from pnp_batch.cli.options import answer, common
from pnp_batch.errors import InvalidConfig


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@common
def provenance(files: tuple[str, ...], as_json: bool) -> None:
    """Show how each image FILE says that it was made; a path, or any URI of a store."""
    from pnp_batch.provenance import read

    found = {file: read(_bytes(file)) for file in files}
    lines = []
    for file, told in found.items():
        lines.append(f"{file}:" + " no provenance" * (told is None))
        lines += [
            f"  {_printable(name)}: {_printable(value)}" for name, value in (told or {}).items()
        ]
    body = [{"file": file, "provenance": told} for file, told in found.items()]
    answer("\n".join(lines), {"files": body}, as_json=as_json)


def _printable(value: object) -> str:
    """A value as JSON. What a stranger wrote into a file moves no cursor and turns no text."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _bytes(file: str) -> bytes:
    from pnp_batch.storage import Storage

    folder, _, name = file.rpartition("/")
    data = Storage(folder or ("/" if file.startswith("/") else ".")).read_if_there(name)
    if data is None:
        raise InvalidConfig(f"{file}: no such file", "give the path or URI of an image")
    return data
