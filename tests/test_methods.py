"""FerKD and Fast MEAL V2 against their formulas, and starting from given weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from storage.errors import UsageError
from trainer import models
from trainer.batch import Batch, TopKTarget
from trainer.losses import dense_probs
from trainer.method_config import FerkdConfig, MealConfig, MixConfig
from trainer.methods import FKD, FerKD, MealV2
from trainer.methods.meal import Discriminator
from trainer.models.init import load_weights


def batch(sure, classes=6, target=None):
    """One crop for each largest probability; the rest of the mass is spread."""
    sure = torch.tensor(sure)
    label = TopKTarget(torch.arange(len(sure)).unsqueeze(-1) % classes, sure.unsqueeze(-1),
                       1 - sure)  # fmt: skip
    target = torch.full((len(sure),), 2) if target is None else torch.tensor(target)
    return Batch(torch.zeros(len(sure), 3, 4, 4), target, label)


def logits_for(count, classes=6):
    return torch.tensor(np.random.default_rng(3).normal(0, 2, (count, classes)))


def test_ferkd_without_thresholds_is_fkd():
    data, logits = batch([0.2, 0.5, 0.99]), logits_for(3)
    ferkd = FerKD(FerkdConfig(), 1.0, MixConfig(), 1)
    assert torch.equal(ferkd.loss(logits, data)["soft_ce"], FKD().loss(logits, data)["soft_ce"])


def test_ferkd_leaves_out_softens_and_keeps_by_the_largest_probability():
    data, logits = batch([0.05, 0.3, 0.6, 0.999]), logits_for(4)
    config = FerkdConfig(low=0.1, middle=0.4, top=0.9, epsilon=0.1)
    found = FerKD(config, 1.0, MixConfig(), 1).loss(logits, data)["soft_ce"]
    log_q = logits.double().log_softmax(-1)
    softened = torch.full((6,), 0.1 / 5, dtype=torch.float64)
    softened[2] = 0.9
    hard = -(softened * log_q[1]).sum()
    soft = -(dense_probs(data.labels, 6)[2].double() * log_q[2]).sum()
    assert float(found) == pytest.approx(float((hard + soft) / 2), rel=1e-5)


def test_ferkd_with_nothing_left_gives_a_zero_that_can_be_learnt_from():
    logits = logits_for(2).requires_grad_()
    config = FerkdConfig(low=0.5, middle=0.5, top=0.6)
    loss = FerKD(config, 1.0, MixConfig(), 1).loss(logits, batch([0.1, 0.9]))["soft_ce"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_ferkd_says_so_where_images_have_no_class():
    config = FerkdConfig(middle=0.5)
    with pytest.raises(UsageError, match=r"ferkd\.middle"):
        FerKD(config, 1.0, MixConfig(), 1).loss(logits_for(1), batch([0.2], target=[-1]))


def test_meal_adds_the_published_discriminator_term():
    data, logits = batch([0.3, 0.8], classes=16), logits_for(2, 16)
    torch.manual_seed(0)
    method = MealV2(MealConfig(discriminator_weight=0.5), 16, 1.0, MixConfig(), 1)
    found = method.terms(lambda _images: logits, data)
    layers = method.discriminator.layers
    assert [tuple(layer.weight.shape) for layer in layers] == [(2, 16), (15, 2), (2, 15)]

    def told(probs):
        for layer in layers:
            probs = F.relu(probs @ layer.weight.T + layer.bias)
        return probs

    student = told(logits.float().softmax(-1))
    teacher = told(dense_probs(data.labels, 16))
    per_output = [
        F.softplus(-student[:, 0]), F.softplus(student[:, 1]),
        F.softplus(teacher[:, 0]), F.softplus(-teacher[:, 1]),
    ]  # fmt: skip
    expected = 0.5 * torch.stack(per_output).mean().detach()
    assert float(found["discriminator"].detach()) == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(found["soft_ce"], FKD().loss(logits, data)["soft_ce"])


def test_meals_discriminator_learns_with_the_student_and_is_not_part_of_it():
    method = MealV2(MealConfig(), 6, 1.0, MixConfig(), 1)
    logits = logits_for(2).requires_grad_()
    sum(method.terms(lambda _images: logits, batch([0.3, 0.8])).values()).backward()
    assert all(p.grad is not None for p in method.parameters())
    assert MealV2(MealConfig(discriminator=False), 6, 1.0, MixConfig(), 1).discriminator is None
    assert sum(p.numel() for p in Discriminator(1000).parameters()) == (
        1000 * 125 + 125 + 125 * 15 + 15 + 15 * 2 + 2
    )


def test_a_student_starts_from_the_weights_of_the_same_network(tmp_path):
    torch.manual_seed(0)
    source, student = models.create("resnet8", 5), models.create("resnet8", 5)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert load_weights(student, tmp_path / "w.safetensors") == []
    for name, tensor in source.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor)


def test_a_head_of_other_classes_starts_anew_and_is_named(tmp_path):
    source, student = models.create("resnet8", 7), models.create("resnet8", 5)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    before = student.fc.weight.clone()
    assert load_weights(student, tmp_path / "w.safetensors") == ["fc.bias", "fc.weight"]
    assert torch.equal(student.fc.weight, before)
    assert torch.equal(student.conv1.weight, source.conv1.weight)


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    save_file(models.create("resnet14", 5).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"another network: \d+ tensors don't fit, such as layer1"):
        load_weights(models.create("resnet8", 5), tmp_path / "w.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x02pickle")
    with pytest.raises(UsageError, match="can't be read as safetensors"):
        load_weights(models.create("resnet8", 5), tmp_path / "x.safetensors")
