"""The fused normalisation is ToTensor and Normalize."""

from __future__ import annotations

import torch
import torchvision.transforms.functional as F

from trainer.replay.normalize import Normalizer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_it_equals_torchvisions_to_tensor_and_normalize_for_batches_of_any_size():
    normalize = Normalizer(MEAN, STD, 9)
    generator = torch.Generator().manual_seed(0)
    for images in (3, 1, 5):
        views = torch.randint(0, 256, (images, 2, 9, 9, 3), generator=generator, dtype=torch.uint8)
        result = normalize(views)
        expected = views.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        torch.testing.assert_close(result, F.normalize(expected, MEAN, STD), rtol=0, atol=2e-6)
        assert result.is_contiguous(memory_format=torch.channels_last)
