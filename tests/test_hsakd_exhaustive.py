"""A store of all 162 padded crops is the live teacher: any crop that could be drawn is in it."""

import numpy as np
import torch
from hsakd_parts import branched, live_heads
from PIL import Image
from safetensors.torch import save_file

from labelgen import generate, load_teacher, resolve
from labelgen.target_options import TargetOptions
from storage import LabelStore
from storage.targets.heads import head_logits
from storage.views import PaddedCrop

SIDE = 16  # an image's; as many views as of CIFAR's 32
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def online_crop(pixels, dy, dx, flip):
    """What a padding of 4 black pixels, a crop at (dy, dx) and a flip make of it, normalised."""
    padded = np.zeros((SIDE + 8, SIDE + 8, 3), np.float64)
    padded[4:-4, 4:-4] = pixels / 255
    crop = padded[dy : dy + SIDE, dx : dx + SIDE]
    crop = crop[:, ::-1] if flip else crop
    return torch.from_numpy((crop - MEAN) / STD).permute(2, 0, 1).float()


def test_the_heads_of_all_162_views_are_the_live_teachers_answers_to_all_crops(tmp_path):
    pixels = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "images" / "a" / "one.png")
    network = branched("hsakd-resnet8", seed=2).eval()
    save_file(network.state_dict(), tmp_path / "t.safetensors")
    spec = resolve(f"file:{tmp_path / 't.safetensors'}", arch="hsakd-resnet8", size=SIDE, mean=MEAN,
                   std=STD)  # fmt: skip
    generate(load_teacher(spec, "cpu"), tmp_path / "images", tmp_path / "s.zarr", crops=162,
             top_k=3, sampler=PaddedCrop(), workers=1, teacher_check=False, block_images=1,
             targets=TargetOptions(heads="all", head_views=162,
                                   head_encoding="pooled-fp32"))  # fmt: skip
    store = LabelStore.open(tmp_path / "s.zarr")
    record, plane = store.spec.targets["heads/all"], store.read_plane(0, 162)
    views = {
        (int(box[0]), int(box[1]), int(flip)): view
        for view, (box, flip) in enumerate(zip(plane.box[0], plane.flip[0], strict=True))
    }
    every = [(dy, dx, flip) for dy in range(9) for dx in range(9) for flip in (0, 1)]
    assert sorted(views) == every
    rows = torch.stack([
        torch.rot90(online_crop(pixels, *place), r, (1, 2)) for place in every for r in range(4)
    ])  # fmt: skip
    values = store.read_target("heads/all", slice(0, 1))
    for head, wanted in live_heads(network, rows).items():
        kept = values | {
            name: store.read_constant("heads/all", name)
            for name in (f"{head}_weight", f"{head}_bias")
        }
        logits = head_logits(record, kept, head)[0][[views[place] for place in every]]
        np.testing.assert_allclose(logits.reshape(wanted.shape), wanted, rtol=1e-3, atol=1e-3)
        assert wanted.std() > 0.3, "the comparison could fail"
