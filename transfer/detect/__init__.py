"""Detection: a student as the backbone of torchvision's detectors."""
