"""Views that another project drew: their boxes are data, no rule gives more of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from storage.errors import UsageError
from storage.typed import check_types

if TYPE_CHECKING:
    from storage.views import Views

IMPORTED_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ImportedViews:
    """The sampler of an imported store. source: the archive's format ("fkd", ...)."""

    source: str

    kind: ClassVar[str] = "imported"

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def padding(self) -> int:
        """Boxes lie inside the image itself."""
        return 0

    @property
    def distinct_views(self) -> int | None:
        """Unknown."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a store's attributes."""
        return {"kind": self.kind, "version": IMPORTED_VERSION, "source": self.source}

    def draw(
        self, seed: int, digest: bytes, height: int, width: int, first: int, count: int
    ) -> Views:
        """Can't be done.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"views {first} to {first + count - 1} of {self.source} were drawn elsewhere and can't "
            "be drawn again: label a new store with `labelgen run` to have more views"
        )
