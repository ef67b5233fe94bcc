"""The card: every fact from the store, read back by a YAML parser, Croissant and our commands."""

import json
import re
import shlex
from importlib.util import find_spec

import click
import pytest
import yaml
from click.testing import CliRunner
from store_helpers import fill_store, make_spec, make_teacher

from storage.augment import Augment
from storage.card.croissant import croissant
from storage.card.facts import card_facts
from storage.card.licences import Licences, state_licences
from storage.card.readme import readme
from storage.colour_draws import ColourJitter, Lighting
from storage.commands.card import card
from storage.erasing import Erasing
from storage.errors import StoreError, UsageError
from storage.randaugment import RandAugment
from storage.sealing import seal
from storage.store import LabelStore
from storage.verify import verify
from storage.views import CentreCrop, PaddedCrop, RandomResizedCrop


@pytest.fixture
def store(tmp_path):
    """A sealed store with a masked image."""
    store = fill_store(tmp_path / "toy.zarr", masked=[2])
    seal(store)
    return LabelStore.open(store.path)


def facts_of(store, **options):
    recorded = {n: t.licence for n, t in store.spec.teachers.items()}
    licences = state_licences(recorded, options.pop("labels", None), options.pop("teacher", None),
                              options.pop("images", None))  # fmt: skip
    return card_facts(store, licences, **options)


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_front_matter_is_what_the_hub_reads(store):
    text = readme(facts_of(store, labels="CC-BY-4.0", name='A "quoted": name'))
    found = front_matter(text)
    assert found["license"] == "cc-by-4.0"
    assert found["pretty_name"] == 'A "quoted": name'
    assert found["size_categories"] == ["n<1K"]
    assert found["task_categories"] == ["image-classification"]
    assert text.startswith("---\n")


@pytest.mark.parametrize("licence", ["Our own: terms #3", "https://example.org/terms"])
def test_a_licence_the_hub_does_not_know_is_other_with_its_name(store, licence):
    found = front_matter(readme(facts_of(store, labels=licence)))
    assert (found["license"], found["license_name"]) == ("other", licence)
    assert found.get("license_link", licence) == licence


def test_a_store_without_licences_says_so(store):
    facts = facts_of(store)
    text = readme(facts)
    assert front_matter(text)["license"] == "unknown"
    assert "Nobody has stated a licence of: labels, images." in text
    assert "weights of teacher toy | Apache-2.0" in text
    assert json.loads(croissant(facts))["license"] == "unknown"


def test_the_three_licences_are_kept_apart(store):
    text = readme(facts_of(store, labels="CC-BY-4.0", images="ImageNet terms"))
    assert "| labels (this store) | CC-BY-4.0 |" in text
    assert "| images (not in this store) | ImageNet terms |" in text
    assert "Nobody" not in text
    description = json.loads(croissant(facts_of(store, labels="CC-BY-4.0")))["description"]
    assert "labels CC-BY-4.0; teacher weights toy: Apache-2.0; images unknown" in description


def test_a_stated_teacher_licence_must_not_differ_from_the_stores():
    with pytest.raises(UsageError, match=r"Apache-2\.0, not MIT"):
        state_licences({"a": "Apache-2.0"}, None, "MIT", None)
    assert state_licences({"a": "unknown", "b": "MIT"}, None, "MIT", None).teachers == {
        "a": "MIT", "b": "MIT",
    }  # fmt: skip
    with pytest.raises(UsageError, match="licence"):
        state_licences({}, "two\nlines", None, None)
    assert Licences(teachers={"a": "unknown"}).unstated() == [
        "labels", "weights of teacher a", "images",
    ]  # fmt: skip


def test_everything_that_identifies_the_store_is_on_the_card(store):
    facts = facts_of(store)
    text = readme(facts)
    spec, teacher = store.spec, store.spec.teachers["toy"]
    for fact in (
        facts.manifest.root, facts.manifest_sha256, teacher.digest, teacher.spec, teacher.library,
        store.dataset_fingerprint, spec.dataset["keys_hash"], spec.dataset["class_order_hash"],
        "ant", "0002.jpg (unreadable)", str(list(teacher.mean)), "top_k 3", "seed", "zarr",
    ):  # fmt: skip
        assert fact in text, fact


def parse_command(line):
    """The parameters that `labelgen run` gets from a line of the card."""
    from labelgen.cli import run

    program, name, *words = shlex.split(line)
    assert (program, name) == ("labelgen", "run")
    context = click.Context(run)
    assert run.parse_args(context, words) == []
    return context.params


@pytest.mark.parametrize("sampler", [
    RandomResizedCrop(), RandomResizedCrop(scale=(0.25, 0.9), flip_probability=0.0),
    PaddedCrop(padding=3), RandomResizedCrop(ratio=(0.5, 2.0)),
], ids=str)  # fmt: skip
def test_the_command_on_the_card_asks_for_these_settings(tmp_path, sampler):
    from storage.cli_common import sampler_from_options

    spec = make_spec(sampler=sampler, segment_views=6)
    store = fill_store(tmp_path / "s.zarr", spec)
    seal(store)
    text = readme(facts_of(LabelStore.open(store.path)))
    line = re.search(r"^\$ (labelgen run .*)$", text, re.MULTILINE).group(1)
    found = parse_command(line)
    teacher = spec.teachers["toy"]
    assert found["teacher_name"] == teacher.spec
    assert (found["crops"], found["top_k"], found["seed"]) == (6, 3, 5)
    assert (found["batch_size"], found["block_images"]) == (8, 4)
    assert found["mean"] == teacher.mean and found["std"] == teacher.std
    assert (found["size"], found["interpolation"], found["precision"]) == (32, "bilinear", "fp32")
    names = ("views", "scale", "padding", "flip", "ratio", "crop_ratio")
    assert sampler_from_options(*(found[name] for name in names)) == sampler


def test_the_command_on_the_card_asks_for_the_augmentations(tmp_path):
    from labelgen.augment_options import augment_from_options
    from storage.cli_common import sampler_from_options

    augment = Augment(
        (RandAugment(), ColourJitter(brightness=0.1, hue=0.2), Lighting(), Erasing(fill=(1, 2, 3)))
    )
    for operations in (augment.operations, augment.operations[::-1]):
        sampler = CentreCrop(crop_ratio=0.9, flip=True)
        spec = make_spec(num_views=2, sampler=sampler, augment=Augment(operations))
        store = fill_store(tmp_path / f"{operations[0].kind}.zarr", spec)
        seal(store)
        facts = facts_of(LabelStore.open(store.path))
        found = parse_command(f"{facts.command}")
        names = ("randaugment", "colour_jitter", "lighting", "erasing", "erasing_fill")
        assert augment_from_options(*(found[name] for name in names)) == augment
        names = ("views", "scale", "padding", "flip", "ratio", "crop_ratio")
        assert sampler_from_options(*(found[name] for name in names)) == sampler
        turned = operations[0].kind == "erasing"
        assert any("order of augmentations" in gap for gap in facts.gaps) == turned


def test_the_command_on_the_card_makes_the_same_store_again(tmp_path, monkeypatch):
    from conftest import write_folder
    from training import make_store

    from labelgen.cli import run

    write_folder(tmp_path / "IMAGES", classes=3, per_class=3)
    first = LabelStore.open(make_store(tmp_path / "IMAGES", tmp_path / "first.zarr", crops=4))
    facts = facts_of(first)
    (tmp_path / "first.safetensors").rename(tmp_path / facts.command.split("file:")[1].split()[0])
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(run, [*shlex.split(facts.command)[2:], "--workers", "1"])
    assert found.exit_code == 0, found.output + str(found.exception)
    assert f"root       {facts.manifest.root}" in found.output


def test_settings_the_command_cannot_say_are_named(tmp_path):
    spec = make_spec(sampler=RandomResizedCrop(flip_probability=0.3),
                     teachers=[make_teacher(spec="resnet8@file:mine.safetensors")])  # fmt: skip
    store = fill_store(tmp_path / "s.zarr", spec)
    seal(store)
    facts = facts_of(LabelStore.open(store.path))
    assert "--teacher file:mine.safetensors --arch resnet8" in facts.command
    gaps = " ".join(facts.gaps)
    assert "flip probability 0.3" in gaps and "ab" * 32 in gaps


def test_only_a_sealed_store_gets_a_card(tmp_path):
    store = fill_store(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="not sealed"):
        facts_of(store)


def test_croissant_names_every_file_with_its_hash(store):
    facts = facts_of(store)
    found = {item["@id"]: item for item in json.loads(croissant(facts))["distribution"]}
    assert found.pop("manifest.json")["sha256"] == facts.manifest_sha256
    assert {(n, f["sha256"], f["contentSize"]) for n, f in found.items()} == {
        (name, digest, f"{size} B") for name, (size, digest) in facts.manifest.objects.items()
    }


def test_croissant_of_a_large_store_lists_arrays(store, monkeypatch):
    import storage.card.croissant as module

    monkeypatch.setattr(module, "MOST_FILES", 10)
    found = json.loads(croissant(facts_of(store)))["distribution"]
    sets = {item["includes"] for item in found if item["@type"] == "cr:FileSet"}
    assert "labels/toy/index/c/**" in sets and "images/digest/c/**" in sets
    assert all("sha256" in item for item in found if item["@type"] == "cr:FileObject")
    assert_valid_croissant(store.path, croissant(facts_of(store)))


def test_croissant_is_valid_to_its_own_validator(store):
    assert_valid_croissant(
        store.path, croissant(facts_of(store, labels="CC-BY-4.0", url="https://example.org/a"))
    )


def assert_valid_croissant(folder, text):
    """By mlcroissant where it is installed, else by the shape that the specification asks for."""
    values = json.loads(text)
    for name in ("@context", "@type", "conformsTo", "name", "description", "license",
                 "distribution"):  # fmt: skip
        assert values[name], name
    for item in values["distribution"]:
        assert item["@type"] in ("cr:FileObject", "cr:FileSet")
        assert {"@id", "name", "encodingFormat"} <= set(item)
        assert ("contentUrl" in item and len(item["sha256"]) == 64) or "includes" in item
    if find_spec("mlcroissant") is None:
        return
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies' own
        import mlcroissant

        (folder / "croissant.json").write_text(text)
        dataset = mlcroissant.Dataset(folder / "croissant.json")
        assert not dataset.metadata.ctx.issues.errors
        assert len(dataset.metadata.distribution) == len(values["distribution"])


def test_the_card_lies_in_the_store_without_being_foreign(store):
    found = CliRunner().invoke(card, [str(store.path), "--write", "--licence", "CC-BY-4.0"])
    assert found.exit_code == 0, found.output
    assert "no licence stated for: images" in found.output
    report = verify(store.path, full=True)
    assert report.problems == [] and report.root in (store.path / "README.md").read_text()
    before = (store.path / "README.md").read_bytes()
    CliRunner().invoke(card, [str(store.path), "--write", "--licence", "CC-BY-4.0"])
    assert (store.path / "README.md").read_bytes() == before


def test_the_card_goes_where_it_is_asked_for(store, tmp_path):
    out = tmp_path / "card"
    found = CliRunner().invoke(card, [str(store.path), "--out", str(out), "--json"])
    result = json.loads(found.output)
    assert sorted(p.name for p in out.iterdir()) == result["files"]
    assert result["unstated_licences"] == ["labels", "images"]
    both = CliRunner().invoke(card, [str(store.path), "--out", str(out), "--write"])
    assert isinstance(both.exception, UsageError)


def test_names_from_a_store_cannot_break_the_page(tmp_path):
    classes = ("a|b", "`c`", "x\n# y")
    spec = make_spec()
    spec = make_spec(dataset={**spec.dataset, "classes": classes})
    store = fill_store(tmp_path / "s.zarr", spec)
    seal(store)
    text = readme(facts_of(LabelStore.open(store.path)))
    assert "\n# y" not in text and "`'c'`" in text
