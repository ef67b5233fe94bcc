"""What targets share: whether a store's constants are those that its kinds can use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.targets.features import ORTHONORMAL, kept_energy, orthonormal_error
from storage.targets.record import TargetRecord

Array = npt.NDArray[Any]
ENERGY_ERROR = 1e-6


def constant_problems(
    record: TargetRecord, constants: Mapping[str, Array]
) -> list[tuple[str, str]]:
    """What is wrong with a target's constants: (name, what).

    All are finite; a basis has orthonormal columns (within 1e-4); a spectrum falls, is nowhere
    negative, and keeps the energy that the settings state.
    """
    found = []
    checks: dict[str, Callable[[TargetRecord, Array], str | None]] = {
        "basis": _basis_problem, "spectrum": _spectrum_problem,
    }  # fmt: skip
    for name, values in constants.items():
        what = None
        if not np.isfinite(values).all():
            what = "has values that are not finite"
        elif name in checks and record.kind in ("features", "tokens"):
            what = checks[name](record, values)
        if what:
            found.append((name, what))
    return found


def _basis_problem(_record: TargetRecord, basis: Array) -> str | None:
    error = orthonormal_error(basis)
    return None if error <= ORTHONORMAL else f"is not orthonormal (an entry is off by {error:.2g})"


def _spectrum_problem(record: TargetRecord, spectrum: Array) -> str | None:
    if (spectrum < 0).any() or (np.diff(spectrum) > 0).any():
        return "does not fall from its first to its last component, or is negative"
    stated, kept = record.settings["energy"], kept_energy(spectrum, record.settings["rank"])
    if abs(kept - stated) > ENERGY_ERROR:
        return f"keeps {kept} of its energy, against {stated} in the settings"
    return None
