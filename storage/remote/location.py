"""Where a store lies: a folder, a web server, a bucket or a dataset on the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from storage.errors import StoreError, UsageError

SCHEMES = ("http", "https", "s3", "gs", "hf")
HUB = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w.%-]+))?(/(?P<folder>.+))?"
)


class RemoteError(StoreError):
    """A remote store can't be reached, or its server doesn't do what was asked."""


@dataclass(frozen=True)
class HubLocation:
    """A folder of a dataset repository on the Hub.

    repo: "org/name"; revision: branch, tag or commit; folder: "" for the repository itself.
    """

    repo: str
    revision: str
    folder: str


def is_remote(location: str) -> bool:
    """Whether a store argument is a URL rather than a path."""
    return "://" in location


def normal_url(location: str) -> str:
    """The URL as it is used and shown.

    Raises:
        UsageError: a scheme that isn't read, or parts that a store's URL can't have.
    """
    url = location.rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise UsageError(
            f"{location} has the scheme {parts.scheme!r}; expected a path or one of "
            f"{', '.join(scheme + '://' for scheme in SCHEMES)}"
        )
    if parts.scheme == "hf":
        hub_location(url)
        return url
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"{parts.scheme}://{parts.hostname}: credentials don't belong in a URL, which is "
            "shown and logged: use the environment (AWS_..., GOOGLE_...)"
        )
    if not parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"{location} is not the address of a folder (expected e.g. https://host/store.zarr)"
        )
    if any(part in (".", "..") for part in parts.path.split("/")):
        raise UsageError(f"{location} has a '.' or '..' part: give the folder's plain address")
    return url


def hub_location(url: str) -> HubLocation:
    """The parts of hf://datasets/ORG/NAME[@REVISION][/FOLDER].

    Raises:
        UsageError: anything else.
    """
    found = HUB.fullmatch(url)
    folder = (found["folder"] or "") if found else ""
    if not found or any(part in ("", ".", "..") for part in folder.split("/") if folder):
        raise UsageError(f"{url} is not of the form hf://datasets/ORG/NAME@REVISION/FOLDER")
    revision = (found["revision"] or "main").replace("%2F", "/")
    return HubLocation(found["repo"], revision, folder)
