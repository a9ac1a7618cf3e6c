"""Where a run lives: a directory, or a URL on an object store together with the directory that it is worked on in."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from genal_ray.errors import UserError

PROTOCOLS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "abfs", "abfss": "abfs", "az": "abfs"}
"""Scheme -> fsspec's name of the store. These can create an object only where there is none: the lease needs it."""


def parse_location(value: str) -> Path | str:
    """A path as an absolute one, `file:///path` as that path, a URL without a slash at its end.

    Raises UserError for a URL that cannot hold a run, and for one with credentials, which it does not repeat.
    """
    if "://" not in value:
        return Path(value).expanduser().absolute()
    scheme, _, rest = value.partition("://")
    try:
        parts = urlsplit(value)
        secret = "@" in parts.netloc
    except ValueError as error:
        raise UserError(f"{scheme}://...: this is not a URL ({error})") from error
    if secret:
        raise UserError(
            f"{scheme}://...@...: credentials do not belong into a URL, which is written to files and logs: give them "
            "in the environment (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile)"
        )
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise UserError(f"{value}: a file URL names an absolute path, such as file:///data/runs/first")
        return Path(unquote(parts.path)).absolute()
    if scheme not in PROTOCOLS:
        why = "lives in one process only" if scheme == "memory" else "is not an object store that runs can live on"
        raise UserError(f"{scheme}://...: {scheme} {why}: give a directory, or a URL with {', '.join(PROTOCOLS)}")
    bucket, _, key = rest.rstrip("/").partition("/")
    if not bucket or not key or re.search(r"[?#\s]|::|^/|//|(^|/)\.\.?(/|$)", key):
        shown = re.split("[?#]", value)[0]  # what follows may be a signature
        raise UserError(f"{shown}: expected {scheme}://BUCKET/FOLDER, a plain folder in a bucket")
    return f"{scheme}://{bucket}/{key}"


def local_folder(value: str, option: str) -> Path:
    """The directory that `option` names. Raises UserError for a URL."""
    place = parse_location(value)
    if isinstance(place, str):
        raise UserError(f"{option} {place}: only run directories can live at a URL: give a directory")
    return place


def default_work_dir(url: str) -> Path:
    """The directory in which the run at a URL is worked on, unless the user says where: in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    name = re.sub(r"[^A-Za-z0-9._-]", "-", url.rpartition("/")[2])[:40]
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return Path(cache).expanduser().absolute() / "genal-ray" / "runs" / f"{name}-{digest}"
