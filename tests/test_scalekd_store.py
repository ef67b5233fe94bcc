"""ScaleKD from a store: one step against the live teacher, whole runs, and what is refused."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import write_folder
from extraction import as_teacher, crops, seeded, tiny_swin, tiny_vit
from safetensors.torch import load_file
from torch import nn
from training import request, stopped_after, write_teacher

from labelgen import generate, load_teacher, resolve
from labelgen.extract import extractor_for
from labelgen.extract.base import find_sources
from labelgen.extract.features import probe_batch
from labelgen.extract.tokens import tail_file
from labelgen.target_options import TargetOptions
from labelgen.target_plans import split_mean
from storage import LabelStore
from storage.adding import AddedBlock, begin_addition
from storage.errors import StoreMismatch, TeacherError, UsageError
from storage.sealing import seal
from storage.targets.tokens import split_tokens, token_record, token_settings
from storage.targets.vectors import encode_vectors
from trainer import fit, methods, models
from trainer.batch import Batch, TopKTarget
from trainer.batches import BatchSource
from trainer.hard_targets import with_student_classes
from trainer.inputs import create_loader, open_images
from trainer.method_config import ScalekdConfig
from trainer.methods.scalekd import ScaleKD
from trainer.methods.scalekd_modules import token_distance
from trainer.models.stage_taps import tap_stages
from trainer.models.tails import load_head, load_tail
from trainer.plan import EpochPlan
from trainer.request import configure
from trainer.targets import decode_part
from transfer.export import export

CPU = torch.device("cpu")
# biases before a batch norm, of keys before a softmax, and of what the mean is taken off
NOTHING_BUT_ROUNDING = ("stem.0.bias", "key.bias", "alt.stage4.feed_forward.2.bias")
FAMILIES = {"timm swin": tiny_swin, "timm vit": tiny_vit}


def by_the_card(method, student, places, images, tokens, logits, target, live_tail):
    """The whole loss with a live teacher, as published: sums over tokens, its own modules."""
    maps = {}
    handles = [
        student.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: maps.update({name: output})
        )
        for name in places
    ]
    own = student(images)
    for handle in handles:
        handle.remove()
    count, width = tokens.shape[1], tokens.shape[2]
    log_q = own.log_softmax(-1)
    loss = -0.5 * log_q[torch.arange(len(target)), target].mean()
    loss = loss - 0.5 * (logits.softmax(-1) * log_q).sum(-1).mean()
    flat = lambda x: x / x.norm(dim=-1, keepdim=True)  # noqa: E731
    for view, alpha in (("spat", 3.92 / count), ("alt", 2.94 / count)):
        parts = method.views[view]
        through = live_tail(parts.stage3(maps[places[0]]))
        for found in (through, parts.stage4(maps[places[1]], through)):
            assert found.shape == (len(images), count, width)
            s, z = found, tokens
            if view == "alt":
                s, z = s - s.mean(1, keepdim=True), z - z.mean(1, keepdim=True)
            loss = loss + alpha * (flat(s) - flat(z)).square().sum() / len(images)
    return loss


def gradients(*modules):
    return {
        f"{i}.{name}": p.grad.clone()
        for i, module in enumerate(modules)
        for name, p in module.named_parameters()
        if p.grad is not None
    }


def assert_same_gradients(found, expected, tolerance):
    """All gradients as one vector, and each against its own length where it is no rounding."""
    assert found.keys() == expected.keys()
    whole = torch.cat([g.flatten() for g in expected.values()]).norm()
    moved = {name: (found[name] - expected[name]).norm() for name in expected}
    assert float(torch.stack(list(moved.values())).norm() / whole) <= tolerance
    for name, gradient in expected.items():
        if name.endswith(NOTHING_BUT_ROUNDING):
            assert float(gradient.norm()) < 1e-6 * float(whole)
            continue
        length = max(float(gradient.norm()), 1e-3 * float(whole))
        assert float(moved[name]) <= 10 * tolerance * length, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_with_stored_fp32_tokens_is_the_step_with_the_live_teacher(family):
    teacher, images = as_teacher(seeded(FAMILIES[family]), family, 64), crops(4, 64)
    source = find_sources(teacher, ["tokens"]).tokens
    rebuilt = lambda arch, classes: FAMILIES[family](classes)  # noqa: E731
    settings, data = tail_file(teacher, source, probe_batch(teacher), rebuilt)
    live = extractor_for(teacher, ["tokens"])(images)
    tokens, logits = live["tokens"].clone(), live["logits"].clone()

    record = token_record(
        name="t", teacher="t", views=1, layer="x", grid=source.grid, width=source.width,
        mean_encoding="fp32", remainder_encoding="fp32",
    )  # fmt: skip
    parts = split_tokens(tokens.numpy())
    targets = {}
    for part in record.parts:
        arrays = encode_vectors(part, parts[part.name])
        targets[part.name] = decode_part(part, {n: torch.from_numpy(a) for n, a in arrays.items()})
    probs, index = logits.softmax(-1).sort(dim=-1, descending=True)
    target = torch.tensor([1, 3, 0, 9])
    batch = Batch(images, target, TopKTarget(index, probs, torch.zeros(4)), targets=targets)

    torch.manual_seed(1)
    student = models.create("resnet8", 10)
    head = load_head(data)
    assert (head is not None) == (family == "timm swin"), "kept where logits are its linear map"
    config = ScalekdConfig(s3_heads=2, s4_heads=4)
    taps = tap_stages(student, 64, "resnet8")
    method = ScaleKD(config, taps, load_tail(settings, data, rebuilt), head=head)
    student.train(), method.train()
    twins = copy.deepcopy(student), copy.deepcopy(method)

    terms = method.terms(student, batch)
    assert set(terms) == {"task", "soft_ce", "spat_s3", "spat_s4", "alt_s3", "alt_s4"}
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()

    def live_tail(value):  # the teacher's modules as they stand in it
        model = teacher.model.requires_grad_(False).eval()
        if family == "timm swin":
            value = model.layers[-1](value.unflatten(1, (4, 4)))
            return model.norm(value).flatten(1, 2)
        return model.norm(model.blocks[-1](value))

    places = ("layer2", "layer3")
    expected = by_the_card(twins[1], twins[0], places, images, tokens, logits, target, live_tail)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    found, wanted = gradients(student, method), gradients(*twins)
    assert any(name.startswith("1.views.spat.stage3") for name in found)
    assert "0.conv1.weight" in found and "0.fc.weight" in found
    assert_same_gradients(found, wanted, 2e-5)
    for p, twin in zip(student.parameters(), twins[0].parameters(), strict=True):
        torch.testing.assert_close(p - 0.1 * p.grad, twin - 0.1 * twin.grad, rtol=1e-5, atol=1e-6)


def test_the_tail_never_trains_is_in_no_state_and_lets_gradients_through(world):
    _, stored, config = joined(world)
    student = models.create("resnet8", 3)
    method = methods.create(config, student, stored)
    method.train()
    assert not any(module.training for module in method.tail.modules())
    assert not any(p.requires_grad for p in method.tail.parameters())
    held = {id(p) for p in method.parameters()} | {id(b) for b in method.buffers()}
    assert not any(id(value) in held for value in method.tail.state_dict(keep_vars=True).values())
    assert not any("tail" in name or "head" in name for name in method.state_dict())
    before = copy.deepcopy(method.tail.state_dict())
    maps = torch.randn(2, 32, 12, 12, requires_grad=True)
    method.tail(method.views["spat"].stage3(maps)).square().sum().backward()
    assert maps.grad.abs().sum() > 0
    after = method.tail.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "no running statistics"


@pytest.mark.parametrize("basis_rank", [None, 6])
@pytest.mark.parametrize("remainder", ["int8", "fp16"])
def test_loss_and_gradient_stay_within_the_codecs_bound(remainder, basis_rank):
    """|dL| <= 2 w mean_t |du_t| and |dg_t| <= 2 w |du_t| / (B T |s_t|), u the unit tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(1.0, 1.0, (3, 16, 12)).astype(np.float32)
    basis = spectrum = None
    if basis_rank:
        basis = np.linalg.qr(rng.normal(size=(12, 12)))[0][:, :basis_rank].astype(np.float32)
        spectrum = np.linspace(2, 1, 12)
    record = token_record(
        name="t", teacher="t", views=1, layer="x", grid=(4, 4), width=12, basis=basis,
        spectrum=spectrum, remainder_encoding=remainder, basis_images=1,
    )  # fmt: skip
    split = split_tokens(tokens, basis)
    arrays = {part.name: encode_vectors(part, split[part.name]) for part in record.parts}
    decoded = {
        part.name: decode_part(part, {n: torch.from_numpy(a) for n, a in arrays[part.name].items()})
        for part in record.parts
    }
    error = codec_error(tokens, split, arrays["remainder"], remainder, basis)
    method = bare_method(basis)
    wanted = method.wanted(decoded)
    live = method_views(torch.from_numpy(tokens))
    for view, weight in (("spat", 3.92), ("alt", 2.94)):
        bound = error if view == "spat" else error + error.mean(1, keepdims=True)
        moved = (wanted[view] - live[view]).norm(dim=-1).numpy()
        assert (moved <= bound * 1.0001 + 1e-5).all()
        unit = np.minimum(2, 2 * bound / live[view].norm(dim=-1).numpy())
        found = torch.randn(3, 16, 12, generator=torch.Generator().manual_seed(1))
        losses, slopes = zip(*(slope(found, z[view], weight) for z in (wanted, live)), strict=True)
        assert abs(losses[0] - losses[1]) <= weight * 2 * unit.mean() + 1e-5
        steps = (slopes[0] - slopes[1]).norm(dim=-1).numpy()
        limit = 2 * weight * unit / (48 * found.norm(dim=-1).numpy())
        assert (steps <= limit * 1.001 + 1e-7).all()


def codec_error(tokens, split, arrays, encoding, basis):
    """Largest length [B, T] of a stored token's error: codec, mean, and what the basis leaves."""
    r = split["remainder"].shape[-1]
    if encoding == "int8":
        step = np.sqrt(r) * 0.50002 * arrays["remainder_scale"].astype(np.float64)
    else:
        step = 2.0**-11 * np.linalg.norm(split["remainder"], axis=-1) + np.sqrt(r) * 2.0**-25
    mean = 2.0**-11 * np.linalg.norm(split["mean"], axis=-1) + np.sqrt(12) * 2.0**-25
    rest = tokens - tokens.mean(1, keepdims=True)
    cut = 0 if basis is None else np.linalg.norm(rest - rest @ basis @ basis.T, axis=-1)
    return step + mean[:, None] + cut


def bare_method(basis):
    student = models.create("resnet8", 3)
    basis = None if basis is None else torch.from_numpy(basis)
    return ScaleKD(ScalekdConfig(), tap_stages(student, 16, "resnet8"), tiny_tail(), basis)


def tiny_tail():
    teacher = as_teacher(seeded(lambda: models.create("resnet8", 10)), "resnet8", 32)
    source = find_sources(teacher, ["tokens"]).tokens
    return load_tail(*tail_file(teacher, source, probe_batch(teacher)))


def method_views(tokens):
    return {"spat": tokens, "alt": tokens - tokens.mean(1, keepdim=True)}


def slope(found, wanted, weight):
    found = found.clone().requires_grad_()
    loss = weight * token_distance(found, wanted)
    loss.backward()
    return float(loss.detach()), found.grad


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """18 images, and a store with labels and whole tokens of a tiny teacher on 2 of 4 views."""
    root = tmp_path_factory.mktemp("scalekd")
    folder = write_folder(root / "images", classes=3, per_class=6)
    label(folder, root, "store.zarr", TargetOptions(tokens="last", token_views=2, token_rank=0))
    return root


def label(folder, root, name, targets):
    teacher = live_teacher(root)
    generate(teacher, folder, root / name, crops=4, top_k=3, workers=1, batch_size=16,
             teacher_check=False, targets=targets)  # fmt: skip


def live_teacher(root):
    path = root / "t.safetensors"
    return load_teacher(resolve(f"file:{path if path.exists() else write_teacher(path)}"), "cpu",
                        "fp32")  # fmt: skip


def joined(root, name="store.zarr", **settings):
    """Data, stored target and settings of a run on a store."""
    store = LabelStore.open(root / name)
    asked = request(
        root / "unused", labels=root / name, method="scalekd", views_per_image=2,
        settings={"scalekd.s3_heads": 4, **settings},
    )  # fmt: skip
    beton = open_images(root / "images", root / "train.beton", 0)
    config, data = configure(asked, CPU, store, beton)
    return data, data.features, config


def batches(data, config, views=2):
    loader = create_loader(
        "torch", data.beton, size=24, views=views, interpolation=data.interpolation,
        padding=data.padding, batch_images=6, workers=0, augment=data.augment,
    )  # fmt: skip
    plan = EpochPlan(np.arange(len(data.rows)), 0, views)
    for batch in BatchSource(data, config.student, config.labels, CPU).epoch(loader, 0, plan, 6):
        yield replace(batch, images=batch.images.clone())


@pytest.fixture(scope="module")
def exact(world):
    """The same store with its tokens beside it as float32, of crops replayed by the trainer."""
    data, _, config = joined(world)
    extract, found = extractor_for(live_teacher(world), ["tokens"]), []
    with torch.inference_mode():
        found = [extract(batch.images)["tokens"].clone() for batch in batches(data, config)]
    tokens = torch.cat(found).unflatten(0, (-1, 2)).numpy()
    old = LabelStore.open(world / "store.zarr")
    first = next(iter(old.spec.targets.values()))
    settings = token_settings(first)
    tail = old.target_file(first.path, "tail.safetensors")
    record = token_record(
        name="exact", teacher=first.teacher, views=2, layer="x", grid=settings.grid,
        width=settings.width, mean_encoding="fp32", remainder_encoding="fp32",
        tail_sha256=first.files["tail.safetensors"], tail_settings=settings.tail_settings,
        logits=settings.logits,
    )  # fmt: skip
    mean, remainder = split_mean(torch.from_numpy(tokens).flatten(0, 1))
    parts = {
        "mean": mean.unflatten(0, (-1, 2)).numpy(),
        "remainder": remainder.unflatten(0, (-1, 2)).numpy(),
    }
    store = begin_addition(old, world / "exact.zarr", targets={record.path: record})
    store.write_constants(record.path, {}, {"tail.safetensors": tail})
    for block in store.missing_blocks():
        rows = store.block_rows(block)
        arrays = {}
        for part in record.parts:
            arrays |= encode_vectors(part, parts[part.name][list(rows)])
        store.put_added(block, AddedBlock(targets={record.path: arrays}), device="cpu")
    seal(store)
    return tokens


def one_step(data, stored, config, live=None):
    """Gradients of a first step, with the store's targets or with a teacher at hand."""
    torch.manual_seed(5)
    student = models.create("resnet8", 3)
    method = methods.create(config, student, stored)
    student.train(), method.train()
    batch = next(iter(batches(data, config)))
    if live is not None:
        with torch.no_grad():
            tokens = extractor_for(live, ["tokens"])(batch.images)["tokens"].clone()
        mean, remainder = split_mean(tokens)
        batch = replace(batch, targets={"mean": mean, "remainder": remainder})
    terms = method.terms(student, batch)
    torch.stack(list(terms.values())).sum().backward()
    return {name: float(term.detach()) for name, term in terms.items()}, gradients(student, method)


def test_a_step_from_a_store_with_fp32_tokens_is_the_live_step_bit_for_bit(world, exact):
    data, stored, config = joined(world, "exact.zarr", **{"scalekd.target": "exact"})
    assert stored.record.name == "exact"
    terms, found = one_step(data, stored, config)
    live_terms, live = one_step(data, stored, config, live_teacher(world))
    assert terms == live_terms
    assert found.keys() == live.keys() and len(found) > 50
    differences = {name: float((found[name] - live[name]).abs().max()) for name in live}
    assert not any(differences.values()), "nothing is lost between the teacher and the loss"


def test_a_step_from_a_store_with_int8_tokens_is_near_the_live_step(world):
    data, stored, config = joined(world)
    terms, found = one_step(data, stored, config)
    live_terms, live = one_step(data, stored, config, live_teacher(world))
    assert terms == pytest.approx(live_terms, rel=5e-3)
    flat = [torch.cat([g[name].flatten() for name in sorted(g)]) for g in (found, live)]
    assert float(F.cosine_similarity(*flat, dim=0)) > 0.999
    assert not torch.equal(*flat)


def test_the_teachers_logits_follow_from_the_stored_mean(world):
    data, stored, config = joined(world)
    teacher = live_teacher(world)
    head = load_head(stored.file("tail.safetensors"))
    batch = next(iter(batches(data, config)))
    with torch.no_grad():
        found, expected = head(batch.targets["mean"]), teacher.model(batch.images)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-2)  # the mean is float16


def test_only_views_with_tokens_are_planned_over(world):
    data, _, _ = joined(world)
    assert data.stored_views == 2
    with pytest.raises(UsageError, match="holds 2 views"):
        fit(request(world / "many", labels=world / "store.zarr", method="scalekd",
                    views_per_image=4, settings={"scalekd.s3_heads": 4}))  # fmt: skip


def test_a_student_learns_and_its_file_is_the_plain_network(world, tmp_path):
    from trainer.metrics import read_metrics

    result = fit(request(tmp_path / "run", labels=world / "store.zarr", method="scalekd",
                         views_per_image=2, lr=0.02, epochs=3, batch_size=12,
                         settings={"scalekd.s3_heads": 4, "loop.ema_decay": 0.9}))  # fmt: skip
    lines = read_metrics(result.out / "metrics.jsonl")
    losses = [x["loss"] for x in lines if x["kind"] == "train"]
    assert losses[-1] < losses[0] and "agreement" in lines[0]
    plain = models.create("resnet8", 3).state_dict()
    for name in ("student.safetensors", "student_ema.safetensors"):
        saved = load_file(result.out / name)
        assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in plain.items()}
        assert export(result.out / name, "hub", tmp_path / name).max_difference == 0


def test_a_stopped_run_goes_on_with_its_projectors_to_the_same_bits(world, tmp_path, monkeypatch):
    common = {"labels": world / "store.zarr", "method": "scalekd", "views_per_image": 2,
              "epochs": 1, "batch_size": 12, "settings": {"scalekd.s3_heads": 4}}  # fmt: skip
    whole = fit(request(tmp_path / "whole", **common))
    with stopped_after(1, monkeypatch):
        fit(request(tmp_path / "cut", **common))
    cut = fit(request(tmp_path / "cut", **common))
    a, b = (load_file(run.out / "student.safetensors") for run in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_hard_targets_are_the_teachers_classes(world):
    data, _, _ = joined(world)
    names = data.beton.classes
    assert [names[i] for i in data.beton.targets] == [f"class{i}" for i in data.target]


def test_classes_that_the_teacher_does_not_have_are_refused_with_the_way_out(world):
    data, _, config = joined(world)
    other = replace(config.student, classes=("class2", "class0", "bird"))
    with pytest.raises(StoreMismatch, match=r"class 'class1' is none of the 3 .* or the way"):
        with_student_classes(data, other, "the way")
    turned = replace(config.student, classes=("class2", "class0", "class1"))
    found = with_student_classes(data, turned, "the way").target
    assert np.array_equal(found[data.rows], (data.target[data.rows] + 1) % 3)
    without = replace(data, target=np.full_like(data.target, -1))
    with pytest.raises(UsageError, match=r"some images have none: .* or the way"):
        with_student_classes(without, config.student, "the way")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (None, r"--method scalekd learns from tokens, .* add them with `labelgen add .*--tokens"),
        (TargetOptions(tokens="x", token_views=2, tail=False), r"tokens/x has not: add .*--tail"),
    ],
)
def test_a_store_without_tokens_or_tail_is_refused_with_the_command(options, message, tmp_path):
    write_folder(tmp_path / "images", classes=3, per_class=1)
    label(tmp_path / "images", tmp_path, "s.zarr", options)
    with pytest.raises(UsageError, match=message):
        fit(request(tmp_path / "run", labels=tmp_path / "s.zarr", method="scalekd",
                    views_per_image=1, batch_size=2))  # fmt: skip


def created(stored, config, **changes):
    return methods.create(config, models.create("resnet8", 3), replace(stored, **changes))


def test_a_tail_of_another_teacher_is_refused_with_both_digests(world):
    _, stored, config = joined(world)
    other = replace(stored.teacher, digest="f" * 64)
    message = f"digest {stored.teacher.digest}, and the store's .* has {'f' * 64}"
    with pytest.raises(StoreMismatch, match=message):
        created(stored, config, teacher=other)


def test_a_tail_that_gives_other_tokens_is_refused_with_both_grids(world):
    _, stored, config = joined(world)
    settings = dict(stored.record.settings)
    settings["tail_settings"] = settings["tail_settings"] | {"grid": [3, 3]}
    wrong = replace(stored.record, settings=settings)
    with pytest.raises(StoreMismatch, match=r"gives 3 x 3 tokens of 64 .* are 6 x 6 tokens of 64"):
        created(stored, config, record=wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scalekd.s3_heads": 5}, "s3_heads is 5, which doesn't divide the 32 channels"),
        ({"scalekd.logits": "labels", "labels.temperature": 2.0}, "is 2.0, .* teacher's at 1"),
    ],
)
def test_settings_that_the_store_cannot_serve_are_refused(world, settings, message):
    _, stored, config = joined(world, **settings)
    with pytest.raises(UsageError, match=message):
        created(stored, config)


def test_logits_of_the_mean_are_refused_where_the_teachers_are_no_map_of_it(world):
    _, stored, config = joined(world, **{"scalekd.logits": "mean"})
    created(stored, config)
    settings = dict(stored.record.settings) | {"logits": None}
    with pytest.raises(UsageError, match="are no linear map of their mean: use 'labels'"):
        created(stored, config, record=replace(stored.record, settings=settings))


def test_a_student_without_known_stages_is_refused(world):
    _, stored, config = joined(world)
    with pytest.raises(UsageError, match="no stages that this release knows"):
        methods.create(config, nn.Sequential(nn.Flatten(), nn.Linear(1728, 3)), stored)


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        ("tv:resnet18", 32, r"fourth stage is a single place at 32 pixels.* 6 x 6 tokens of 64"),
        ("tv:resnet18", 16, r"third stage is a single place at 16 pixels.* 6 x 6 tokens of 64"),
        ("timm:deit_tiny_patch16_224", 64, r"take crops of 64 pixels .*\(224\)\.\): give its"),
    ],
)
def test_a_student_whose_grids_give_no_tokens_is_refused_with_both(world, arch, size, message):
    _, stored, config = joined(world)
    chosen = replace(config, student=replace(config.student, arch=arch, input_size=size))
    with pytest.raises(UsageError, match=message):
        methods.create(chosen, models.create(arch, 3), stored)


def test_a_teacher_left_in_train_mode_gives_no_targets():
    teacher = as_teacher(seeded(tiny_swin), "timm swin", 64)
    teacher.model.layers[1].train()
    message = r"timm swin is in train mode \(layers.1 and \d+ more .*those of eval mode"
    with pytest.raises(TeacherError, match=message):
        extractor_for(teacher, ["tokens"])


def test_mixed_crops_and_foreign_labels_are_refused(world):
    with pytest.raises(UsageError, match="tokens of mixed crops aren't stored"):
        joined(world, **{"mix.kind": "mixup"})
    with pytest.raises(UsageError, match="--teacher is other, and tokens/last is of"):
        joined(world, **{"labels.teacher": "other"})
