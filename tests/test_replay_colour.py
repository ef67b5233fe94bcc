"""Stored augmentations: compiled equals numpy, and all three readers of a store see one picture."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelling import tiny_teacher
from odd_images import write_folder

from storage.augment import Augment, replay_view
from storage.colour_draws import ColourJitter, Lighting
from storage.erasing import Erasing
from storage.errors import StoreMismatch, UsageError
from storage.images import ImageStatus, scan_folder
from storage.pixels import cut_view, decode_rgb
from storage.randaugment import RandAugment
from storage.store import LabelStore
from trainer.replay.beton import Beton, pack
from trainer.replay.colour import augment_view, compile_program
from trainer.replay.loader import TorchReplayLoader

DIGEST = hashlib.sha256(b"an image").digest()
ALL = Augment(
    (
        RandAugment(count=2, magnitude=12),
        ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2),
        Lighting(sigma=0.2),
        Erasing(probability=0.5, fill=(9, 99, 199)),
    )
)
jitters = st.builds(
    ColourJitter, brightness=st.floats(0.1, 6), contrast=st.floats(0, 6),
    saturation=st.floats(0, 6), hue=st.floats(0, 0.5),
)  # fmt: skip
operations = st.one_of(
    jitters,
    st.builds(RandAugment, count=st.integers(1, 4), magnitude=st.integers(0, 30)),
    st.builds(Lighting, sigma=st.floats(0.01, 1)),
    st.builds(Erasing, probability=st.just(1.0)),
)


@given(operations, st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(0, 255),
       st.integers(0, 255))  # fmt: skip
@settings(max_examples=300)
def test_compiled_operations_are_numpy_s_bit_for_bit(operation, side, seed, low, high):
    augment = Augment((operation,))
    draw = augment.draw(seed, DIGEST, 0, 1)[0]
    low, high = sorted((low, high))
    pixels = np.random.default_rng(seed).integers(low, high + 1, (side, side, 3)).astype(np.uint8)
    found = pixels.copy()
    augment_view(found, draw, compile_program(augment))
    assert np.array_equal(found, augment.apply(pixels, draw))


def test_every_colour_turns_the_same_way_in_both():
    """All hues at several saturations and values, by every shift of 1 / 48 turn."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    pixels = np.resize(cube, (71, 71, 3)).astype(np.uint8)
    augment = Augment((ColourJitter(hue=0.5),))
    for shift in range(-768, 769, 32):
        draw = np.array([0, 256, 256, 256, shift], np.int16)
        found = pixels.copy()
        augment_view(found, draw, compile_program(augment))
        assert np.array_equal(found, augment.apply(pixels, draw)), shift


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Odd images, labelled under all augmentations by a tiny teacher, and packed."""
    from labelgen.run import generate

    root = tmp_path_factory.mktemp("augmented")
    write_folder(root / "data")
    generate(tiny_teacher(root), root / "data", root / "store.zarr", crops=4, batch_size=8,
             workers=1, augment=ALL)  # fmt: skip
    folder = scan_folder(root / "data")
    pack(folder, root / "odd.beton")
    return folder, LabelStore.open(root / "store.zarr"), Beton.open(root / "odd.beton")


def joined(labelled, loader_kind, **settings):
    """(TrainingData, loader) as the trainer makes them."""
    from trainer.data import join_store
    from trainer.inputs import create_loader

    _, store, beton = labelled
    data = join_store(beton, store, None)
    loader = create_loader(
        loader_kind, beton, size=16, views=2, interpolation=data.interpolation,
        padding=data.padding, augment=data.augment, batch_images=4, workers=1, **settings,
    )  # fmt: skip
    return data, loader


def test_both_loaders_and_the_labelled_pixels_are_one(labelled):
    """The crops that the teacher was shown, and those that either loader replays."""
    from labelgen.crop_worker import CropConfig, cut_unit
    from labelgen.plan import Unit
    from trainer.plan import EpochPlan

    folder, store, beton = labelled
    rows_of_store = {key: row for row, key in enumerate(store.read_images().key)}
    config = CropConfig(
        root=str(folder.root), sampler=store.spec.sampler.to_json(), seed=store.spec.seed, size=16,
        interpolation=store.spec.pixel.interpolation, slots=4,
        augment=store.spec.augment.to_json(),
    )  # fmt: skip
    plane = store.read_plane(0, 4)
    taught = {}
    for row, key in enumerate(folder.keys):
        crops = np.zeros((4, 16, 16, 3), np.uint8)
        cut = cut_unit(Unit(row, 0, 4, 0), key, config, store.spec.sampler, crops)
        if cut.status == ImageStatus.OK:
            assert np.array_equal(cut.draw, plane.draw[rows_of_store[key]])
            taught[key] = crops
    for kind in ("torch", "ffcv"):
        data, loader = joined(labelled, kind)
        for first in (0, 2):
            plan = EpochPlan(order=np.arange(len(data.rows)), first_view=first, num_views=2)
            tables = data.tables(0, plan)
            seen = 0
            for batch in loader.epoch(data.rows, tables.box, tables.flip, tables.draw):
                for row, pixels in zip(batch.rows, batch.images.numpy(), strict=True):
                    assert np.array_equal(pixels, taught[beton.keys[row]][first : first + 2])
                    seen += 1
            assert seen == len(taught)


def test_the_engine_forwards_the_augmented_pixels(labelled):
    """Labels are those of a plain loop over `replay_view`, and not those of bare crops."""
    from labelgen.forward import Forward

    folder, store, _ = labelled
    teacher = tiny_teacher(store.path.parent)
    name = teacher.spec.name
    table, plane = store.read_images(), store.read_plane(0, 4, name)
    codec = store.spec.teachers[name].codec
    agreeing = {"augmented": [], "bare": []}
    for row in np.flatnonzero(table.status == ImageStatus.OK):
        image = decode_rgb((folder.root / table.key[row]).read_bytes())
        arguments = [
            (image, box, bool(flip), 16, store.spec.pixel.interpolation)
            for box, flip in zip(plane.box[row], plane.flip[row], strict=True)
        ]
        crops = {
            "augmented": [
                replay_view(*a, store.spec.augment, draw)
                for a, draw in zip(arguments, plane.draw[row], strict=True)
            ],
            "bare": [cut_view(*a) for a in arguments],
        }
        for kind, pixels in crops.items():
            _, index = Forward(teacher, codec.top_k)(np.stack(pixels))
            agreeing[kind].append((index == plane.index[row]).all(axis=1).mean())
    assert np.mean(agreeing["augmented"]) > 0.98 > 0.8 > np.mean(agreeing["bare"])


def test_a_loader_needs_draws_that_fit_its_augmentations(labelled):
    from trainer.plan import EpochPlan

    _, _, beton = labelled
    data, loader = joined(labelled, "torch")
    tables = data.tables(0, EpochPlan(order=np.arange(2), first_view=0, num_views=2))
    with pytest.raises(UsageError, match="draws of shape None"):
        loader.epoch(data.rows, tables.box, tables.flip)
    bare = TorchReplayLoader(beton, size=16, views=2, batch_images=4, workers=0)
    with pytest.raises(UsageError, match="need None"):
        bare.epoch(data.rows, tables.box, tables.flip, tables.draw)
    damaged = tables.draw.copy()
    damaged[data.rows[1], 1, 4] = 300  # an order that there is not
    with pytest.raises(StoreMismatch, match=r"draws of 1 images.*verify --full"):
        loader.epoch(data.rows, tables.box, tables.flip, damaged)


def test_both_loaders_train_the_same_student_from_an_augmented_store(labelled, tmp_path):
    from safetensors.numpy import load_file
    from training import request

    from trainer import fit

    _, store, _ = labelled
    students = []
    for kind in ("torch", "ffcv"):
        settings = {"labels": store.path, "size": 16, "views_per_image": 2, "epochs": 1}
        result = fit(request(tmp_path / kind, loader=kind, workers=1, **settings))
        students.append(load_file(result.out / "student.safetensors"))
    for name, value in students[0].items():
        assert np.array_equal(value, students[1][name]), name


def test_the_command_line_asks_for_centre_views_and_augmentations(labelled, tmp_path):
    from click.testing import CliRunner
    from labelling import write_weights

    from labelgen.cli import cli
    from storage.views import CentreCrop

    folder, _, _ = labelled
    weights = write_weights(tmp_path / "tiny.safetensors")
    words = ["run", "--teacher", f"file:{weights}", "--data", str(folder.root), "--workers", "1",
             "--out", str(tmp_path / "s.zarr"), "--views", "centre", "--crop-ratio", "0.5",
             "--colour-jitter", "0.1", "0.1", "0.1", "0", "--lighting", "0.05"]  # fmt: skip
    refused = CliRunner().invoke(cli, [*words, "--crops", "3"])
    assert "use at most --crops 2" in str(refused.exception)
    found = CliRunner().invoke(cli, [*words, "--crops", "2", "--batch-size", "8"])
    assert found.exit_code == 0, found.output + str(found.exception)
    store = LabelStore.open(tmp_path / "s.zarr")
    assert store.spec.sampler == CentreCrop(crop_ratio=0.5, flip=True)
    assert store.spec.augment == Augment(
        (ColourJitter(brightness=0.1, contrast=0.1, saturation=0.1), Lighting(sigma=0.05))
    )
    sound = store.read_status() == ImageStatus.OK
    assert set(store.read_plane(0, 2).flip[sound].tolist()[0]) == {0, 1}
