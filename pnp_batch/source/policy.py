"""Where guidance images may come from.

In: an image URI out of a manifest and the job's `SourcePolicy`. Out: the real local path, or the
full URI that may be read; everything else is `ImageForbidden`. Opens no file, asks no network.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pnp_batch.errors import ImageForbidden, ImageNotFound
from pnp_batch.storage import absolute, is_local

WEB_SCHEMES = frozenset({"http", "https"})
STORE_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"})

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_SCHEME_WITHOUT_SLASHES = re.compile(r"(data|file|https?|javascript):", re.IGNORECASE)
_WEB_ADDRESS = re.compile(r"https?://\[[0-9a-f:.]+\]", re.IGNORECASE)
_LONGEST = 16_384
_LONGEST_SHOWN = 300


@dataclass(frozen=True)
class SourcePolicy:
    """What a manifest's image URIs may name, and how much one image may cost.

    `base` is the folder or URI prefix of the manifest; `roots` are further local folders; `hosts`
    are what http(s) URIs may name (`host`, `host:port` or an IP address). `max_pixels` above
    Pillow's own limit for decompression bombs (89 million) has no effect beyond that limit.
    `read_timeout` is in seconds and covers the whole read of one image, with all its `attempts`;
    only trouble with the storage is worth another one.
    """

    base: str
    roots: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    max_bytes: int = 64 * 2**20
    max_pixels: int = 50_000_000
    read_timeout: float = 10.0
    attempts: int = 3


def scheme_of(uri: str) -> str:
    """The scheme in lower case; empty for a local path."""
    found = _SCHEME.match(uri)
    return found[1].lower() if found else ""


def shown(uri: str) -> str:
    """The URI as messages may print it: one line, without userinfo, query and signatures."""
    scheme, separator, rest = uri.partition("://")
    if separator and scheme.lower() != "file":
        rest, query, _ = rest.partition("?")
        authority = rest.partition("/")[0]
        # A colon without a port may begin a password that holds a slash: then all is hidden.
        hidden = (rest if ":" in authority else authority).rfind("@") + 1
        rest = ("***@" + rest[hidden:] if hidden else rest) + ("?..." if query else "")
    text = scheme + separator + rest
    cut = "..." if len(text) > _LONGEST_SHOWN else ""
    return "".join(map(_printable, text[:_LONGEST_SHOWN])) + cut


def locate(uri: str, policy: SourcePolicy) -> str:
    """The absolute local path, free of symlinks, or the full URI that `uri` stands for.

    Raises `ImageForbidden`, also for what is not there: who may not read a place is not told
    whether it exists. Hosts of http(s) URIs are left to the reader, which checks each redirect.
    """
    _check_text(uri, uri)
    scheme = scheme_of(uri)
    if scheme in WEB_SCHEMES:
        return uri
    if scheme in STORE_SCHEMES:
        return _store_uri(uri, scheme)
    if scheme == "file":
        return _local_path(_path_of_file_uri(uri), uri, policy)
    if scheme or _SCHEME_WITHOUT_SLASHES.match(uri):
        raise ImageForbidden(
            f"{shown(uri)}: images are not read from URIs of this kind; use a path, s3://, gs://, "
            "az:// or hf://, https:// with --allow-host, or embed the bytes in the manifest"
        )
    if uri.startswith("/") or is_local(policy.base):
        return _local_path(uri, uri, policy)
    return _joined(policy.base, uri)


def _printable(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape").decode()
    return character


def _check_text(text: str, uri: str) -> None:
    """Checks the text of a path or URI; `uri` is what messages call it."""
    if not text.strip():
        raise ImageNotFound("the image path is empty; name a file or set it to null")
    if len(text) > _LONGEST:
        raise ImageForbidden(
            f"{shown(uri)}: longer than {_LONGEST} characters; embed images as bytes, not as text"
        )
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise ImageForbidden(f"{shown(uri)}: control characters are not allowed in an image URI")
    if "::" in _WEB_ADDRESS.sub("", text, count=1):
        raise ImageForbidden(
            f"{shown(uri)}: chained URIs ('::') are not allowed; name the image file itself"
        )


def _refuse_parents(path: str, uri: str) -> None:
    if ".." in re.split(r"[/\\]", unquote(path)):
        raise ImageForbidden(f"{shown(uri)}: '..' is not allowed here; write the full URI")


def _store_uri(uri: str, scheme: str) -> str:
    place, _, path = uri[len(scheme) + 3 :].partition("/")
    # abfs://container@account... is the one place where '@' names no user.
    if "@" in place and (not scheme.startswith("abfs") or ":" in place):
        raise ImageForbidden(
            f"{shown(uri)}: credentials in a URI are not allowed; set them in the environment"
        )
    if not place:
        raise ImageForbidden(f"{shown(uri)}: the URI names no bucket; write {scheme}://BUCKET/KEY")
    _refuse_parents(path, uri)
    return scheme + uri[len(scheme) :]


def _joined(base: str, path: str) -> str:
    _refuse_parents(path, path)
    names = [name for name in path.split("/") if name not in ("", ".")]
    return "/".join([base.rstrip("/"), *names])


def _path_of_file_uri(uri: str) -> str:
    host, slash, path = uri[len("file://") :].partition("/")
    if host not in ("", "localhost") or not slash:
        raise ImageForbidden(f"{shown(uri)}: write file:/// and an absolute path")
    path = slash + unquote(path)
    _check_text(path, uri)  # what was percent-encoded has not been looked at yet
    return path


def _local_path(path: str, uri: str, policy: SourcePolicy) -> str:
    folders = [_real(folder) for folder in (policy.base, *policy.roots) if is_local(folder)]
    start = folders[0] if is_local(policy.base) else "/"
    real = os.path.realpath(Path(start) / path)
    if not any(Path(real).is_relative_to(folder) for folder in folders):
        raise ImageForbidden(
            f"{shown(uri)}: outside the manifest's folder and the allowed roots; "
            f"to allow it add --allow-root {shown(str(Path(real).parent))}"
        )
    return real


def _real(folder: str) -> str:
    return os.path.realpath(absolute(folder))
