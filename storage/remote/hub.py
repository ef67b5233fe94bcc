"""Datasets on the Hugging Face Hub: a fixed commit's files over HTTPS, uploads as commits."""

from __future__ import annotations

from typing import Any

from storage.extras import needs_extra
from storage.remote.location import HubLocation, RemoteError, hub_location


def web_address(url: str) -> tuple[str, dict[str, str]]:
    """(address of the folder's files at one commit, headers with the user's token).

    A branch or tag is looked up once, so that a run never sees two commits.

    Raises:
        RemoteError: no such dataset or revision, or the Hub can't be reached.
    """
    hub = _library(url)
    place = hub_location(url)
    try:
        info = hub.HfApi().repo_info(place.repo, repo_type="dataset", revision=place.revision)
    except Exception as error:  # its own, requests' and httpx's types, by release
        raise RemoteError(f"{url}: {_first_line(error)}: check name, revision and login") from error
    file = hub.hf_hub_url(
        place.repo, _inside(place, "manifest.json"), repo_type="dataset", revision=info.sha
    )
    headers = {str(k): str(v) for k, v in hub.utils.build_hf_headers().items()}
    return file.removesuffix("/manifest.json"), headers


def upload(url: str, folder: str, files: dict[str, bytes], message: str) -> str:
    """Upload the published files of a store folder, then `files` in order; the last commit.

    A repeated upload goes on: the Hub takes only what it doesn't have.

    Raises:
        UsageError: the address names a commit.
        RemoteError: the Hub refuses.
    """
    hub = _library(url)
    place = hub_location(url)
    try:
        api = hub.HfApi()
        api.create_repo(place.repo, repo_type="dataset", exist_ok=True)
        where: dict[str, Any] = {
            "repo_id": place.repo,
            "repo_type": "dataset",
            "revision": place.revision,
            "commit_message": message,
        }
        api.upload_folder(
            folder_path=folder,
            path_in_repo=place.folder or None,
            ignore_patterns=[*files, "receipts/*", "local.json", "**/.teachonce-*"],
            **where,
        )
        commit = None
        for name, data in files.items():
            commit = api.upload_file(
                path_or_fileobj=data, path_in_repo=_inside(place, name), **where
            )
    except Exception as error:
        raise RemoteError(f"{url}: {_first_line(error)}: check name, revision and login") from error
    return str(getattr(commit, "oid", ""))


def _inside(place: HubLocation, name: str) -> str:
    return f"{place.folder}/{name}" if place.folder else name


def _library(url: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.utils
    except ImportError as error:
        raise needs_extra(url, "huggingface_hub", "remote,hub") from error
    return huggingface_hub


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
