"""The kinds of object store: a scheme in, out how its client is made and asked, and what it means.

Every client here tries a call once and leaves trying again to `storage`; a write is one request
whose object appears whole; and `create` is refused by the store itself where another was faster.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import sync

# Larger files are sent in parts, which take no checksum of the whole.
LARGEST_CHECKED = 50 * 2**20
# Of silence, in seconds: what a client that is left to itself would wait for minutes.
CONNECT_SECONDS, READ_SECONDS = 10, 30


class Store:
    """A kind of store that is not known better: fsspec's ways, and no promise beyond them.

    Attributes:
        name: what people call it.
        schemes: of its URIs.
        errors: modules and names of what its client raises beside `OSError`.
        lasting: those among them that the same call would meet again.
    """

    name = "storage"
    schemes: tuple[str, ...] = ()
    errors: tuple[tuple[str, str], ...] = ()
    lasting: tuple[tuple[str, str], ...] = ()

    def options(self) -> dict[str, Any]:
        """What its file system is made with."""
        return {}

    def once(self, fs: fsspec.AbstractFileSystem) -> None:
        """Switches off what the client would try again itself."""

    def write(self, data: bytes) -> dict[str, Any]:
        """What `pipe_file` is told so that the store, or the client, checks what has arrived."""
        return {}

    def create(self) -> dict[str, Any]:
        """What `pipe_file` is told so that it fails where an object is there already."""
        return {"mode": "create"}

    def read(self) -> dict[str, Any]:
        """What `cat_file` is told so that it is one request, hence one version of the object."""
        return {}

    def meant(self, error: Exception) -> Exception:
        """An error of the client as the standard library calls it, where it has a name for it.

        What is refused as it stands, by the store or by the client, is a `PermissionError`.
        """
        return _refused(error) if isinstance(error, ValueError) else error

    def place(self, fs: fsspec.AbstractFileSystem) -> str:
        """The endpoint that the client asks, and what else tells where that is; no secrets."""
        return ""


class S3(Store):
    """Amazon S3 and what speaks its language, through s3fs."""

    name = "S3"
    schemes = ("s3", "s3a")
    errors = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
    )
    lasting = (
        ("botocore.exceptions", "NoCredentialsError"),
        ("botocore.exceptions", "PartialCredentialsError"),
        ("botocore.exceptions", "ParamValidationError"),
        ("botocore.exceptions", "NoRegionError"),
    )

    def options(self) -> dict[str, Any]:
        """As `Store` says."""
        own = {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
        }
        given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        return {"config_kwargs": {**own, **given}}

    def once(self, fs: fsspec.AbstractFileSystem) -> None:
        """As `Store` says: s3fs tries five times of its own."""
        fs.retries = 1

    def write(self, data: bytes) -> dict[str, Any]:
        """As `Store` says: S3 refuses bytes that changed on the way."""
        if len(data) > LARGEST_CHECKED:
            return {}
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        return {"ContentMD5": base64.b64encode(digest).decode()}

    def meant(self, error: Exception) -> Exception:
        """As `Store` says: s3fs knows some refusals only."""
        told = getattr(error.__cause__, "response", None) or {}
        code = told.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return _refused(error) if code in (401, 403) else super().meant(error)

    def place(self, fs: fsspec.AbstractFileSystem) -> str:
        """As `Store` says."""
        meta = sync(fs.loop, fs.set_session).meta
        return f"{_plain(meta.endpoint_url)}, region {meta.region_name}"


class GoogleCloud(Store):
    """Google Cloud Storage, through gcsfs."""

    name = "Google Cloud Storage"
    schemes = ("gs", "gcs")
    errors = (
        ("aiohttp", "ClientError"),
        ("gcsfs.retry", "HttpError"),
        ("gcsfs.retry", "ChecksumError"),
        ("google.auth.exceptions", "GoogleAuthError"),
    )
    lasting = (
        ("google.auth.exceptions", "DefaultCredentialsError"),
        ("google.auth.exceptions", "MalformedError"),
    )

    def options(self) -> dict[str, Any]:
        """As `Store` says."""
        # gcsfs would ask another service first, at an address of its own, which kind of bucket it
        # is. It looks while it is imported.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        return {"consistency": "md5"}

    def once(self, fs: fsspec.AbstractFileSystem) -> None:
        """As `Store` says: gcsfs tries six times, in a decorator of this one method."""
        fs._request = type(fs)._request.__wrapped__.__get__(fs)

    def read(self) -> dict[str, Any]:
        """As `Store` says: gcsfs reads large objects in pieces, side by side."""
        return {"concurrency": 1}

    def meant(self, error: Exception) -> Exception:
        """As `Store` says: gcsfs has no kind of its own for a refusal."""
        code = str(getattr(error, "code", ""))
        if code in ("400", "401", "403") or str(error).startswith("Forbidden: "):
            return _refused(error)
        return super().meant(error)

    def place(self, fs: fsspec.AbstractFileSystem) -> str:
        """As `Store` says."""
        return _plain(fs._location)


class Azure(Store):
    """Azure Blob Storage, through adlfs."""

    name = "Azure Blob Storage"
    schemes = ("az", "abfs", "abfss")
    errors = (("azure.core.exceptions", "AzureError"), ("aiohttp", "ClientError"))
    lasting = (("azure.core.exceptions", "ClientAuthenticationError"),)

    def options(self) -> dict[str, Any]:
        """As `Store` says."""
        return {"connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}

    def once(self, fs: fsspec.AbstractFileSystem) -> None:
        """As `Store` says: adlfs takes no option for it (its issue 502)."""
        fs.service_client._config.retry_policy.total_retries = 0

    def write(self, data: bytes) -> dict[str, Any]:
        """As `Store` says: Azure refuses bytes that changed on the way."""
        return {"validate_content": True}

    def create(self) -> dict[str, Any]:
        """As `Store` says."""
        return {"overwrite": False}

    def meant(self, error: Exception) -> Exception:
        """As `Store` says."""
        code = getattr(error, "status_code", None)
        if code == 404:
            return FileNotFoundError(str(error))
        return _refused(error) if code in (401, 403) else super().meant(error)

    def place(self, fs: fsspec.AbstractFileSystem) -> str:
        """As `Store` says."""
        asked = fs.service_client
        return f"{_plain(asked.primary_endpoint)}, account {asked.account_name}"


class HuggingFace(Store):
    """The Hugging Face hub, through huggingface_hub; for reading."""

    name = "the Hugging Face hub"
    schemes = ("hf",)
    errors = (("httpx2", "HTTPError"),)

    def meant(self, error: Exception) -> Exception:
        """As `Store` says."""
        code = getattr(getattr(error, "response", None), "status_code", None)
        return _refused(error) if code in (401, 403) else super().meant(error)

    def place(self, fs: fsspec.AbstractFileSystem) -> str:
        """As `Store` says."""
        return _plain(fs.endpoint)


STORES: tuple[Store, ...] = (S3(), GoogleCloud(), Azure(), HuggingFace())
BY_SCHEME: Mapping[str, Store] = {s: store for store in STORES for s in store.schemes}
OTHER = Store()


def store_of(uri: str) -> Store:
    """The kind of store that a URI names."""
    return BY_SCHEME.get(uri.partition("://")[0].lower(), OTHER)


def _refused(error: Exception) -> PermissionError:
    return PermissionError(" ".join(str(error).split()))


def _plain(url: str) -> str:
    """A URL's scheme, host, port and path: what else it has may be secret."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"
