"""Label stores that lie elsewhere: web servers, buckets, the Hugging Face Hub."""

from __future__ import annotations

from storage.remote.location import is_remote
from storage.remote.opening import open_any

__all__ = ["is_remote", "open_any"]
