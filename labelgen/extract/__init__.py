"""What one forward pass of a teacher gives beside its logits: features, heads, tokens."""

from labelgen.extract.base import Extractor, extractor_for

__all__ = ["Extractor", "extractor_for"]
