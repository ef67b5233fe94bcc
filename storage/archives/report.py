"""What an import met: everything bad is listed with its reason, nothing bad stops it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SHOWN = 20


@dataclass
class ImportReport:
    """Counts and problems of one import.

    problems: (file or image, what is wrong), in the order met.
    notes: what was assumed or changed, for the whole archive.
    """

    format: str
    archive: str
    out: str
    images: int = 0
    labelled: int = 0
    views: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    agreement: float | None = None
    root: str | None = None

    def problem(self, where: str, what: str) -> None:
        """Note a file that can't be used."""
        self.problems.append((where, what))

    def count(self, what: str, by: int = 1) -> None:
        """Count something that was changed or left out."""
        self.counts[what] = self.counts.get(what, 0) + by

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and `--report`."""
        return {
            "format": self.format,
            "archive": self.archive,
            "out": self.out,
            "images": self.images,
            "labelled": self.labelled,
            "views": self.views,
            "top1_agreement": self.agreement,
            "root": self.root,
            "counts": self.counts,
            "notes": self.notes,
            "problems": [{"file": where, "problem": what} for where, what in self.problems],
        }

    def text(self) -> str:
        """For people."""
        lines = [
            f"{self.out}: {self.labelled} of {self.images} images with {self.views} views each "
            f"from {self.format} archive {self.archive}",
            *(f"  assumed    {note}" for note in self.notes),
            *(f"  counted    {count} {what}" for what, count in sorted(self.counts.items())),
            *(f"  problem    {where}: {what}" for where, what in self.problems[:SHOWN]),
        ]
        if len(self.problems) > SHOWN:
            lines.append(f"  problem    ... and {len(self.problems) - SHOWN} more (--report FILE)")
        if self.agreement is not None:
            lines.append(f"  agreement  {self.agreement:.1%} of top classes are the folder's")
        if self.root:
            lines.append(f"  root       {self.root}")
        return "\n".join(lines)
