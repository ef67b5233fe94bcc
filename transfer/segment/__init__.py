"""Semantic segmentation with the student as encoder (segmentation-models-pytorch)."""
