"""Rows that strangers might send: images that must be refused, each with its one right error.

In: a folder for the manifest, a server whose address is allowed and one whose address is not. Out:
what the `image` column of each bad row holds, the error type, and the advice its message gives.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pnp_batch.source.policy import shown
from tests.faults.bombs import bombs
from tests.pictures import PNG, picture, saved
from tests.source.site import SECRET

if TYPE_CHECKING:
    from tests.source.site import Site

MIB = 6  # the limit of a file in bytes; the bombs are smaller
ALLOW_ROOT, ALLOW_HOST = "add --allow-root", "add --allow-host"
FORBIDDEN, NOT_FOUND, TOO_LARGE = "ImageForbidden", "ImageNotFound", "ImageTooLarge"
UNDECODABLE, STORAGE = "ImageUndecodable", "StorageError"


@dataclass(frozen=True)
class Poison:
    """A bad row: a URI, or bytes in the manifest; `advice` is a piece of the message."""

    image: str | bytes
    error_type: str
    advice: str = ""

    @property
    def named(self) -> str:
        """How the message calls the image."""
        return "the embedded image" if isinstance(self.image, bytes) else shown(self.image)


def poison(folder: Path, site: Site, canary: Site) -> list[Poison]:
    """Lays the traps in the folder and on the server, and returns all bad rows."""
    return [
        *_paths_outside(folder),
        *_no_files(folder),
        *_other_uris(),
        *_hosts(canary),
        *_redirects(site, canary),
        *_answers(site),
        *_spoilt_files(folder),
        *(Poison(data, kind) for data, kind in _embedded()),
    ]


def _paths_outside(folder: Path) -> list[Poison]:
    outside = folder.parent / "outside.png"
    outside.write_bytes(PNG)
    (folder / "link.png").symlink_to(outside)
    (folder / "up").symlink_to(folder.parent)
    uris = (
        *("../outside.png", "images/../../outside.png", "link.png", "up/outside.png"),
        *(str(outside), "/etc/passwd", "/etc/no-such-file", "file:///etc/passwd"),
        *(f"file://{folder}/%2e%2e/outside.png", "/proc/self/environ"),
    )
    return [Poison(uri, FORBIDDEN, ALLOW_ROOT) for uri in uris]


def _no_files(folder: Path) -> list[Poison]:
    os.mkfifo(folder / "fifo.png")
    (folder / "loop.png").symlink_to("loop.png")
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(folder)  # the path of a socket must be short
        listener.bind("socket.png")
        os.chdir(here)
    special = ("fifo.png", "socket.png", "/dev/zero")
    absent = ("loop.png", "no.png", "x" * 300, "images/0.png/a.png")
    return [
        *(Poison(uri, FORBIDDEN, "copy the image to one") for uri in special),
        *(Poison(uri, NOT_FOUND, "check the path") for uri in absent),
        *(Poison(uri, NOT_FOUND, "name a file in it") for uri in ("images", ".")),
    ]


def _other_uris() -> list[Poison]:
    chains = ("simplecache::s3://bucket/a.png", "simplecache::file:///etc/passwd", "a.png::")
    kinds = (
        *("zip://a.zip", "memory://a.png", "data:image/png;base64,AAAA", "ftp://host/a.png"),
        *("javascript:alert(1)", "local:///etc/passwd", "github://org:repo@/a.png"),
    )
    return [
        *(Poison(uri, FORBIDDEN, "name the image file itself") for uri in chains),
        *(Poison(uri, FORBIDDEN, "use a path, s3://") for uri in kinds),
        Poison("images/0.png\0", FORBIDDEN, "control characters"),
        Poison("images/0.png\n", FORBIDDEN, "control characters"),
        Poison("file:///images/0%00.png", FORBIDDEN, "control characters"),
        Poison("images/" * 4_000 + "0.png", FORBIDDEN, "embed images as bytes"),
        Poison("://" * 100_000, FORBIDDEN, "embed images as bytes"),
        Poison(f"s3://user:{SECRET}@bucket/a.png", FORBIDDEN, "set them in the environment"),
        Poison("s3://bucket/../a.png", FORBIDDEN, "write the full URI"),
        Poison("s3:///a.png", FORBIDDEN, "write s3://BUCKET/KEY"),
        Poison("file://server/share/a.png", FORBIDDEN, "write file:///"),
    ]


def _hosts(canary: Site) -> list[Poison]:
    """The canary under all its names; `localhost` is allowed as a name, its address is not."""
    spellings = ("127.0.0.1", "localhost", "localhost.", "127.1", "2130706433", "0x7f000001")
    inside = ("169.254.169.254/latest/meta-data", "10.0.0.3/a.png", "[::1]/a.png", "0.0.0.0/a.png")
    return [
        *(Poison(canary.uri("a.png", host), FORBIDDEN, ALLOW_HOST) for host in spellings),
        *(Poison(f"http://{place}", FORBIDDEN, ALLOW_HOST) for place in inside),
        Poison(canary.uri("a.png", "[::ffff:127.0.0.1]"), FORBIDDEN, ALLOW_HOST),
        Poison(f"http://user:{SECRET}@{canary.address}/a.png", FORBIDDEN, "leave it out"),
        Poison("http:///a.png", FORBIDDEN, "not an http(s) URL"),
        Poison("http://[fe80/a.png", FORBIDDEN, "correct it"),
    ]


def _redirects(site: Site, canary: Site) -> list[Poison]:
    targets = {
        "away": canary.uri("a.png"),
        "inside": canary.uri("a.png", "localhost"),
        "user": f"http://user:{SECRET}@{site.address}/a.png",
        "file": "file:///etc/passwd",
        "store": "s3://bucket/a.png",
    }
    for name, target in targets.items():
        site.routes[name] = (302, {"Location": target}, b"")
    site.routes["round"] = (302, {"Location": "/round"}, b"")
    advice = {"away": ALLOW_HOST, "inside": ALLOW_HOST, "user": "leave it out"}
    return [
        *(Poison(site.uri(name), FORBIDDEN, advice.get(name, "http(s)")) for name in targets),
        Poison(site.uri("round"), STORAGE, "use the final URL"),
    ]


def _answers(site: Site) -> list[Poison]:
    site.routes |= {
        "busy": (503, {}, b""),
        "short": (200, {"Content-Length": "100000"}, PNG),
        "declared": (200, {"Content-Length": str(2**40)}, b"x"),
        "endless": _endless,
    }
    return [
        Poison(site.uri("gone"), NOT_FOUND, "no such image"),
        Poison(site.uri(f"busy?token={SECRET}"), STORAGE, "retry the row"),
        Poison(site.uri("short"), STORAGE, "retry the row"),
        Poison(site.uri("declared"), TOO_LARGE, "shrink"),
        Poison(site.uri("endless"), TOO_LARGE, "shrink"),
    ]


def _endless(wire: BinaryIO) -> None:
    wire.write(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(4 * MIB):
        wire.write(bytes(2**20))


def _spoilt_files(folder: Path) -> list[Poison]:
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    rows = [Poison("sparse.png", TOO_LARGE, "shrink")]
    for number, image_format in enumerate(("PNG", "JPEG", "GIF", "TIFF")):
        whole = saved(picture(200, 150), image_format)
        (folder / f"half{number}").write_bytes(whole[: len(whole) // 2])
        rows.append(Poison(f"half{number}", UNDECODABLE, "save it again"))
    for number, data in enumerate((b"", b"hello", b"PK\3\4" + PNG, saved(picture(), "PPM"))):
        (folder / f"other{number}.png").write_bytes(data)
        rows.append(Poison(f"other{number}.png", UNDECODABLE, "convert it"))
    return rows


def _embedded() -> list[tuple[bytes, str]]:
    bad = [(data, TOO_LARGE) for data, right in bombs().values() if right == "too large"]
    return [*bad, (bytes(MIB * 2**20 + 1), TOO_LARGE), (PNG[:50], UNDECODABLE)]
