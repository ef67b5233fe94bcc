"""The whole examination: machine, store, images, and every path on every canary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labelgen.doctor.crops import CanaryCrop, small_crops, stored_canaries
from labelgen.doctor.diagnosis import Finding, decoder_findings, diagnose
from labelgen.doctor.environment import (
    check_machine,
    check_room,
    check_root,
    describe_machine,
    has_modules,
    version_notes,
)
from labelgen.doctor.images import check_classes, check_images
from labelgen.doctor.paths import NEEDED, PathFailed, replay_loader, replay_pillow
from storage.store import LabelStore


@dataclass(kw_only=True)
class Report:
    """What was looked at and what was found.

    canaries: of the store whose images were read; small: those that need no store.
    paths: what became of each path. findings: causes; notes: what is worth knowing.
    """

    canaries: int = 0
    small: int = 0
    machine: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 where nothing is wrong."""
        return 1 if self.findings else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"ok": not self.findings, **asdict(self)}

    def text(self) -> str:
        """For people: one line a cause."""
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items() if value)
        paths = ", ".join(f"{name} {state}" for name, state in self.paths.items())
        return "\n".join([
            f"machine: {machine}",
            f"canaries: {self.canaries} of the store, {self.small} built in; {paths}",
            *(f"note: {note}" for note in self.notes),
            *(finding.line for finding in self.findings),
            *([] if self.findings else ["nothing is wrong"]),
        ])  # fmt: skip


def examine(
    store: LabelStore | None,
    data: Path | None,
    *,
    paths: Sequence[str],
    root: str | None = None,
) -> Report:
    """Replay all canaries through the paths and name what is wrong.

    Args:
        store: None to look at the machine alone. data: folder of its images; None: not at hand.
        paths: of labelgen.doctor.PATHS. root: that the store should have.
    Raises:
        UsageError: `data` is no image folder.
        StoreError: the store can't be read.
    """
    report = Report(machine=describe_machine())
    report.findings += check_machine()
    crops = small_crops()
    report.small = len(crops)
    if store is not None:
        crops += _examine_store(report, store, data, root)
    report.findings += decoder_findings(crops)
    for path in paths:
        _examine_path(report, path, crops)
    return report


def _examine_store(
    report: Report, store: LabelStore, data: Path | None, root: str | None
) -> list[CanaryCrop]:
    """The store's own canaries whose images are right."""
    report.findings += [*check_root(store, root), *check_room(store)]
    report.notes += version_notes(store)
    canaries = stored_canaries(store)
    if canaries is None:
        report.notes.append(
            f"{store.path} keeps no canaries: its images and views could not be replayed"
        )
        return []
    if data is None:
        report.notes.append("the images are not at hand (--data): the store's canaries were left")
        return []
    checked = check_images(store, canaries, data)
    report.canaries = len(checked.crops)
    report.findings += checked.findings
    if not any(finding.cause == "wrong-folder" for finding in checked.findings):
        report.findings += check_classes(store, data)
    return checked.crops


def _examine_path(report: Report, path: str, crops: Sequence[CanaryCrop]) -> None:
    lacking = has_modules(NEEDED[path])
    if lacking:
        report.paths[path] = "left out"
        report.notes.append(f"the path {path} was left out: {lacking} is not installed")
        return
    made = replay_pillow(crops) if path == "pillow" else replay_loader(crops, path)
    if isinstance(made, PathFailed):
        report.paths[path] = "failed"
        report.findings.append(Finding(
            cause="path-failed", path=path, text=f"the loader could not be run ({made.reason})",
            way_out="train with the other loader (--loader), or mend its installation",
        ))  # fmt: skip
        return
    found = diagnose(path, crops, made)
    wrong = sum(finding.crops for finding in found)
    report.paths[path] = f"{len(crops) - wrong} of {len(crops)} right"
    report.findings += found
