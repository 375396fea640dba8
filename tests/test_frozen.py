"""Held layers compute what batch normalisation in eval mode computes, gradients included."""

import copy

import pytest
import torch
from torch import nn

from ssdkern.frozen import first_layers, hold_norms, hold_pretrained
from ssdkern.model import build


def shaken(module):
    """The module with statistics and scales that are not those of the start."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.3)
    return module


@pytest.fixture(scope="module")
def model():
    return shaken(build("ssd300_mobilenet_v2", 3, 96))


def test_held_norms_match_eval_mode_with_gradients(model):
    plain, held = copy.deepcopy(model.backbone).double(), copy.deepcopy(model.backbone).double()
    assert hold_norms(held) > 50
    assert held.state_dict().keys() == plain.state_dict().keys()
    images = torch.rand(2, 3, 96, 96, dtype=torch.float64)
    plain.eval()
    held.train()
    for a, b in zip(plain(images), held(images), strict=True):
        torch.testing.assert_close(a, b)
    sum(m.square().sum() for m in plain(images)).backward()
    sum(m.square().sum() for m in held(images)).backward()
    wanted = {n: p.grad for n, p in plain.named_parameters()}
    for name, parameter in held.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-6, atol=1e-6)


def test_training_moves_weights_but_not_statistics(model):
    held = copy.deepcopy(model)
    hold_pretrained(held.backbone, 96, freeze=2, norms=True)
    before = copy.deepcopy(held.state_dict())
    optimizer = torch.optim.SGD(held.parameter_groups(0.01, 0.0), momentum=0.9)
    held.train()
    sum(m.square().mean() for m in held.backbone(torch.rand(2, 3, 96, 96))).backward()
    optimizer.step()
    after = held.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "backbone.body.features.17.conv.2.weight" in moved
    assert not any(name.startswith(("backbone.body.features.0.",)) for name in moved)
    assert not any(name.startswith("backbone.body.features.1.") for name in moved)
    assert not any("running" in name and ".body." in name for name in moved)
    build("ssd300_mobilenet_v2", 3, 96).load_state_dict(after)


def test_frozen_layers_hold_their_statistics_even_alone(model):
    held = copy.deepcopy(model)
    hold_pretrained(held.backbone, 96, freeze=3, norms=False)
    layers = first_layers(held.backbone.body, 3)
    assert not any(p.requires_grad for layer in layers for p in layer.parameters())
    names = [n for n, m in held.backbone.body.named_modules() if type(m) is nn.BatchNorm2d]
    assert names and not any(name.startswith(("features.0", "features.2")) for name in names)


def test_vgg_freezes_its_first_convolutions():
    model = build("ssd300", 3)
    hold_pretrained(model.backbone, 300, freeze=4, norms=True)
    still = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert still == [f"backbone.trunk.{i}.{n}" for i in (0, 2) for n in ("weight", "bias")]


def test_a_network_of_another_order_is_refused():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, bias=False)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return [self.conv(self.norm(x))]

    with pytest.raises(ValueError, match="want each normalisation right behind its convolution"):
        hold_pretrained(shaken(Other()), 16, freeze=0, norms=True)
