"""The pooled feature of a teacher before its last ReLU, and the layer that reads it.

Logits come from the rectified map, the feature from the same map before rectification, in one
forward pass (trainer.models.feature_tap finds the place).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from storage.errors import TeacherError
from trainer.models.feature_tap import Head, noise_batch

if TYPE_CHECKING:
    from labelgen.teacher import Teacher


def probe_batch(teacher: Teacher) -> Tensor:
    """Two normalised crops of noise, float32 [2, 3, S, S], the same for a teacher always."""
    return noise_batch(teacher.spec.input_size, teacher.device)


def require_head(teacher: Teacher, head: Head | None, what: str) -> Head:
    """The head, if there is one.

    Raises:
        TeacherError: there is none.
    """
    if head is None:
        raise TeacherError(
            f"teacher {teacher.spec.canonical} has no pooled features: no Linear layer of it gives "
            f"its logits; leave out {what}, or take a teacher that ends in a Linear layer"
        )
    return head
