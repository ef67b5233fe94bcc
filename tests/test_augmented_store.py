"""Stores of augmented crops: draws are written, checked, cut, merged, compared and carried."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from remote_helpers import assert_same, connect
from store_helpers import fill_store, image_digest, make_block, make_spec, make_teacher
from web_servers import FileServer

from storage.archives.fkd_export import export_fkd
from storage.augment import NO_DRAW, Augment
from storage.colour_draws import ColourJitter, Lighting
from storage.compare import diff
from storage.erasing import Erasing
from storage.errors import CorruptStore, FormatVersion, StoreError, StoreMismatch, UsageError
from storage.format import ATTRIBUTE
from storage.manifest import read_manifest
from storage.merge import merge_stores
from storage.randaugment import RandAugment
from storage.remote.pull import pull
from storage.sealing import seal
from storage.select import Selection, subset
from storage.store import ROOT_METADATA, LabelStore
from storage.verify import verify

AUGMENT = Augment(
    (RandAugment(), ColourJitter(brightness=0.1, contrast=0.1), Lighting(), Erasing())
)


def sealed(path, **changes):
    teachers = [make_teacher(), make_teacher("other", top_k=5)]
    spec = make_spec(10, 8, teachers, **{"augment": AUGMENT, **changes})
    seal(fill_store(path, spec, masked=[2]))
    return LabelStore.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """10 images in blocks of 4, 8 views in files of 4, one image masked, two teachers."""
    return sealed(tmp_path_factory.mktemp("augmented") / "store.zarr")


def drawn(row, first=0, count=8):
    return AUGMENT.draw(5, image_digest(row), first, count)


def test_draws_are_read_back_and_masked_images_have_none(store):
    for teacher in (None, "toy"):
        plane = store.read_plane(2, 4, teacher)
        for row in range(10):
            expected = NO_DRAW if row == 2 else drawn(row, 2, 4)
            assert (plane.draw[row] == expected).all()
    assert verify(store.path, full=True).problems == []


def test_any_zarr_reader_opens_the_draws(store):
    array = zarr.open_group(store.path, mode="r")["views/draw"]
    assert array.shape == (10, 8, 16) and array.dtype == np.int16
    assert np.array_equal(array[4], drawn(4))


def test_a_store_without_augmentations_has_no_trace_of_them(tmp_path):
    store = sealed(tmp_path / "s", augment=None)
    assert "augment" not in store.spec.settings()
    assert not (store.path / "views/draw").exists()
    assert store.read_plane(0, 2, "toy").draw is None


def test_settings_survive_and_a_different_augmentation_is_named(store):
    assert LabelStore.open(store.path).spec.augment == AUGMENT
    other = dataclasses.replace(store.spec, augment=Augment((Lighting(sigma=0.2),)))
    with pytest.raises(StoreMismatch, match="augment is"):
        LabelStore.open_or_create(store.path, other)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"version": 2}, FormatVersion, "install a newer teachonce"),
        ({"kind": "cutmix"}, FormatVersion, "cutmix"),
        ({"count": "two"}, CorruptStore, "count is 'two'"),
        ({"strength": 3}, StoreError, "strength"),
    ],
)
def test_augmentations_this_release_does_not_know_are_refused(
    store, tmp_path, change, error, message
):
    path = tmp_path / "s"
    shutil.copytree(store.path, path)
    root = json.loads((path / ROOT_METADATA).read_text())
    root["attributes"][ATTRIBUTE]["settings"]["augment"][0] |= change
    (path / ROOT_METADATA).write_text(json.dumps(root))
    with pytest.raises(error, match=message):
        LabelStore.open(path)


def test_blocks_with_other_draws_than_the_settings_give_are_refused(tmp_path):
    spec = make_spec(augment=AUGMENT)
    store = LabelStore.create(tmp_path / "s", spec)
    good = make_block(spec, 0)
    wrong = good.draw.copy()
    wrong[1, 3, 4] = 24
    for block, message in (
        (dataclasses.replace(good, draw=None), "draws are missing"),
        (dataclasses.replace(good, draw=good.draw[..., :3].copy()), "expected int16"),
        (dataclasses.replace(good, draw=wrong), "row 1 has a draw"),
    ):
        with pytest.raises(UsageError, match=message):
            store.write_block(0, block, "cpu")
    bare = LabelStore.create(tmp_path / "bare", make_spec())
    with pytest.raises(UsageError, match="not in the settings"):
        bare.write_block(0, good, "cpu")


def test_a_flipped_byte_of_the_draws_is_found(store, tmp_path):
    path = tmp_path / "s"
    shutil.copytree(store.path, path)
    name = "views/draw/c/1/0/0"
    content = bytearray((path / name).read_bytes())
    content[20] ^= 1
    (path / name).write_bytes(bytes(content))
    assert [p.path for p in verify(path, full=True).problems] == [name]


def test_a_subset_keeps_the_draws_of_its_views_and_images(store, tmp_path):
    keys = store.read_images().key
    subset(store.path, tmp_path / "cut", Selection(views=(4, 8), images=keys[1:7:2]))
    cut = LabelStore.open(tmp_path / "cut")
    plane = cut.read_plane(0, 4)
    for place, key in enumerate(cut.read_images().key):
        assert np.array_equal(plane.draw[place], drawn(keys.index(key), 4, 4))
    assert verify(cut.path, full=True).problems == []


def test_views_teachers_and_images_merge_with_their_draws(store, tmp_path):
    keys = store.read_images().key
    selections = {
        "views": ({"views": (0, 4)}, {"views": (4, 8)}),
        "teachers": ({"labels": ["toy"]}, {"labels": ["other"]}),
        "images": ({"images": keys[::2]}, {"images": keys[1::2]}),
    }
    for kind, pair in selections.items():
        pieces = [tmp_path / f"{kind}{n}" for n in range(2)]
        for piece, selection in zip(pieces, pair, strict=True):
            subset(store.path, piece, Selection(**selection))
        merge_stores(pieces, tmp_path / kind)
        merged = LabelStore.open(tmp_path / kind)
        rows = [keys.index(key) for key in merged.read_images().key]
        assert np.array_equal(merged.read_plane(0, 8).draw, store.read_plane(0, 8).draw[rows])
        assert verify(merged.path, full=True).problems == []


def test_teachers_who_saw_other_draws_are_not_merged(store, tmp_path):
    subset(store.path, tmp_path / "toy", Selection(labels=["toy"]))
    spec = make_spec(10, 8, [make_teacher("other", top_k=5)], augment=AUGMENT)
    other = LabelStore.create(tmp_path / "other", spec)
    for block in range(other.blocks):
        data = make_block(spec, block, [2])
        data.draw[0, 0] = drawn(0, 1, 1)
        other.write_block(block, data, "cpu")
    seal(other)
    with pytest.raises(StoreMismatch, match=r"views/draw of .*0000\.jpg"):
        merge_stores([tmp_path / "toy", other.path], tmp_path / "m")
    report = diff(store, LabelStore.open(other.path))
    assert report.views == {"compared": 72, "different": 3}  # a view a block


def test_a_store_with_other_draws_is_not_continued(store, tmp_path):
    subset(store.path, tmp_path / "head", Selection(views=(0, 4)))
    spec = make_spec(10, 4, list(store.spec.teachers.values()), augment=AUGMENT)
    tail = LabelStore.create(tmp_path / "tail", spec)  # draws of views 0 to 3, not 4 to 7
    tail.attributes["first_view"] = 4
    root = json.loads((tail.path / ROOT_METADATA).read_text())
    root["attributes"][ATTRIBUTE]["first_view"] = 4
    (tail.path / ROOT_METADATA).write_text(json.dumps(root))
    for block in range(tail.blocks):
        data = make_block(store.spec, block, [2])
        part = {"box": data.box[:, 4:], "flip": data.flip[:, 4:], "draw": data.draw[:, :4]}
        data = dataclasses.replace(
            make_block(spec, block, [2]), **{name: part[name].copy() for name in part}
        )
        tail.write_block(block, data, "cpu")
    seal(tail)
    with pytest.raises(StoreMismatch, match="not views 4 onwards"):
        merge_stores([tmp_path / "head", tail.path], tmp_path / "m")


def test_draws_come_over_the_network_with_their_plane(store, tmp_path):
    shutil.copytree(store.path, tmp_path / "www/s")
    with FileServer(tmp_path / "www") as server:
        remote = connect(f"{server.url}/s", tmp_path / "cache")
        assert_same(remote, store, 2, 2)
        assert np.array_equal(remote.read_plane(4, 4).draw, store.read_plane(4, 4).draw)
        whole = connect(f"{server.url}/s", tmp_path / "cache2", whole=True)
        pull(whole, tmp_path / "copy")
    assert read_manifest(tmp_path / "copy").root == read_manifest(store.path).root
    assert verify(tmp_path / "copy", full=True).problems == []


def test_other_projects_formats_cannot_hold_draws(store, tmp_path):
    with pytest.raises(UsageError, match=r"augmented crops \(randaugment, colour-jitter"):
        export_fkd(store, tmp_path / "fkd", teacher="toy", label_type="hard")
    assert not (tmp_path / "fkd").exists()


def parsed(arguments):
    """The augmentations of a command line, or what it says is wrong."""
    import click

    from labelgen.augment_options import augment_from_options, augment_options

    found = []

    @click.command()
    @augment_options
    def command(**options):
        found.append(augment_from_options(**options))

    result = CliRunner().invoke(command, arguments.split())
    return found[0] if found else result.exception or result.output


def test_options_say_what_is_done_to_crops():
    assert parsed("") is None
    assert parsed("--colour-jitter .1 .1 .1 0 --lighting 0.05") == Augment(
        (ColourJitter(brightness=0.1, contrast=0.1, saturation=0.1), Lighting(sigma=0.05))
    )
    assert parsed("--erasing 0.25 --randaugment 2 9") == Augment(
        (RandAugment(count=2, magnitude=9), Erasing(probability=0.25))
    )
    assert parsed("--erasing 1 --erasing-fill 0 1 2").operations[0].fill == (0, 1, 2)
    assert "needs --erasing" in str(parsed("--erasing-fill 0 1 2"))
    assert "magnitude is 31" in str(parsed("--randaugment 2 31"))
    assert "expected above 0" in str(parsed("--lighting 0"))
