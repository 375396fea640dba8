"""Backbones against the shapes, counts and formulas of the original, and against torchvision."""

import itertools
import math

import pytest
import torch
from cases import whole
from torch import nn

from ssdkern.backbones import (
    VGG16,
    FeatureBackbone,
    L2Norm,
    TinyNet,
    caffe_xavier_,
    feature_shapes,
    layers_at,
)
from ssdkern.model import build


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def mobilenet():
    return pytest.importorskip("torchvision").models.mobilenet_v2(weights=None).eval()


@pytest.mark.parametrize(
    ("variant", "sides", "extras"),
    [(300, (38, 19, 10, 5, 3, 1), 2_459_520), (512, (64, 32, 16, 8, 4, 2, 1), 3_016_960)],
)
def test_vgg_has_the_papers_maps(variant, sides, extras):
    with torch.device("meta"):
        backbone = VGG16(variant)
    widths = (512, 1024, 512, 256, 256, 256, 256)
    assert feature_shapes(backbone, variant) == list(zip(widths, sides, strict=False))
    assert count(backbone.trunk) == 20_483_904
    assert count(backbone.l2norm) == 512
    assert count(backbone.extras) == extras


def test_vgg_without_atrous():
    """fc6 7x7 and fc7 of the full net, conv5_3 as a source: the same six maps."""
    with torch.device("meta"):
        backbone = VGG16(300, atrous=False)
    widths, sides = (512, 512, 4096, 512, 256, 256), (38, 19, 10, 5, 3, 1)
    assert feature_shapes(backbone, 300) == list(zip(widths, sides, strict=True))
    assert backbone.trunk[31].weight.shape == (4096, 512, 7, 7)


@pytest.mark.parametrize("sources", [(0, 1, 2, 3, 4), (0, 1, 2), (1,)])
def test_vgg_keeps_some_sources(sources):
    with torch.device("meta"):
        backbone = VGG16(300, sources=sources)
    every = [(512, 38), (1024, 19), (512, 10), (256, 5), (256, 3), (256, 1)]
    assert feature_shapes(backbone, 300) == [every[index] for index in sources]
    assert len(backbone.extras) == 2 * max(max(sources) - 1, 0)
    assert (backbone.l2norm is None) == (0 not in sources)


@pytest.mark.parametrize("size", [64, 100, 224, 320, 450])
def test_vgg_takes_any_size(size):
    with torch.device("meta"):
        maps = feature_shapes(VGG16(300, size), size)
    assert len(maps) == 6
    assert [side for _, side in maps[:2]] == [math.ceil(size / 8), math.ceil(size / 16)]
    assert maps[-1][1] >= 1


def test_vgg_sources_are_rectified_and_not_overwritten():
    backbone = VGG16(300, 64).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = backbone(image)
        conv4_3 = backbone.trunk[:23](image)
    norm = conv4_3.square().sum(1, keepdim=True).add(1e-10).sqrt()
    torch.testing.assert_close(maps[0], 20 * conv4_3 / norm)
    assert all((each >= 0).all() and (each > 0).any() for each in maps)


def test_vgg_rejects():
    with pytest.raises(ValueError, match="variant 300 or 512"):
        VGG16(400)
    with pytest.raises(ValueError, match=r"sources among 0\.\.5"):
        VGG16(300, sources=(1, 6))
    with torch.device("meta"), pytest.raises(ValueError, match="image size VGG16 can take, got 64"):
        feature_shapes(VGG16(512, 64), 64)


def test_l2norm():
    norm = L2Norm(3)
    x = torch.tensor([3.0, 0.0, 4.0]).view(1, 3, 1, 1).requires_grad_()
    torch.testing.assert_close(norm(x).flatten(), torch.tensor([12.0, 0.0, 16.0]))
    zero = torch.zeros(1, 3, 1, 1, requires_grad=True)
    norm(zero).sum().backward()
    assert zero.grad.isfinite().all()
    half = torch.full((1, 3, 1, 1), 6e4, dtype=torch.float16)
    torch.testing.assert_close(norm(half).flatten(), torch.full((3,), 20 / math.sqrt(3)).half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_l2norm_in_every_precision(dtype, layout):
    """Values and gradients by the formula in float64, each off by its own rounding alone."""
    norm = L2Norm(64)
    nn.init.uniform_(norm.weight, 5, 25)
    x = (3 * torch.randn(2, 64, 5, 4)).relu().to(dtype).contiguous(memory_format=layout)
    x[0, :, 1] = 0
    x.requires_grad_()
    exact, weight = (t.detach().double().requires_grad_() for t in (x, norm.weight))
    expected = exact / exact.square().sum(1, keepdim=True).add(1e-10).sqrt()
    expected = expected * weight[:, None, None]
    ahead = torch.randn(x.shape, dtype=torch.float64)
    autocast = dtype in (torch.bfloat16, torch.float16)
    with torch.autocast("cpu", dtype if autocast else None, enabled=autocast):
        found = norm(x)
    assert found.dtype == dtype
    found.backward(ahead.to(dtype))
    expected.backward(ahead.to(dtype).double())
    bound = 4 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    for one, other in ((found, expected), (norm.weight.grad, weight.grad)):
        assert (one.double() - other).abs().max() < bound * other.abs().max()
    alive = expected.detach().any(1, keepdim=True).expand_as(x)
    error = (x.grad.double() - exact.grad).abs()
    assert error[alive].max() < bound * exact.grad[alive].abs().max()
    if dtype != torch.float16:  # whose range ends below 1 / sqrt(1e-10)
        assert x.grad.isfinite().all()


def test_l2norm_is_one_graph_under_autocast():
    norm, x = L2Norm(16), torch.randn(2, 16, 3, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(whole(norm)(x), norm(x))


def test_l2norm_of_nothing_is_nothing_in_onnx(tmp_path):
    """Where all channels are 0 no exporter may divide 0 by 0."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    x = torch.randn(1, 16, 3, 3)
    x[:, :, 1] = 0
    norm, file = L2Norm(16).eval(), tmp_path / "norm.onnx"
    torch.onnx.export(norm, (x,), file, dynamo=True, verbose=False)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), norm(x), rtol=1e-5, atol=1e-5)


def test_caffe_xavier():
    torch.manual_seed(0)
    conv = caffe_xavier_(nn.Conv2d(64, 128, 3))
    bound = math.sqrt(3 / (64 * 9))
    assert conv.weight.abs().max() <= bound
    assert abs(conv.weight.std() * math.sqrt(64 * 9) - 1) < 0.01
    assert not conv.bias.any()


def test_any_torchvision_model(mobilenet):
    layers = layers_at(mobilenet, (8, 16, 32), 224)
    assert layers[:2] == ["features.7.conv.0", "features.14.conv.0"]
    backbone = FeatureBackbone(mobilenet, layers[1:], image_size=96).eval()
    image = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        maps = backbone(image)
        before = mobilenet.features[:14](image)
        expected = mobilenet.features[14].conv[0](before), mobilenet.features(image)
    assert [each.shape[2] for each in maps] == [6, 3, 2, 1]
    assert feature_shapes(backbone, 96) == [tuple(each.shape[1:3]) for each in maps]
    torch.testing.assert_close(maps[:2], list(expected))
    narrow = FeatureBackbone(mobilenet, layers, image_size=96, neck=64)
    assert [shape[0] for shape in feature_shapes(narrow, 96)] == [64, 64, 64, 512, 256]


def test_any_timm_model():
    timm = pytest.importorskip("timm")
    body = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(3, 4))
    backbone = FeatureBackbone(body, image_size=128, extras=(64, 32))
    assert feature_shapes(backbone, 128) == [(256, 8), (512, 4), (64, 2), (32, 1)]
    assert [each.shape[1] for each in backbone(torch.randn(2, 3, 128, 128))] == [256, 512, 64, 32]
    with pytest.raises(ValueError, match="want a model that timm knows, got 'nothing'"):
        build("timm/nothing", 3)


def test_probing_leaves_the_model_alone(mobilenet):
    backbone = FeatureBackbone(mobilenet, ["features.18"], image_size=64).train()
    before = {name: each.clone() for name, each in backbone.state_dict().items()}
    feature_shapes(backbone, 100)
    assert backbone.training
    assert all(torch.equal(before[name], each) for name, each in backbone.state_dict().items())


def test_layers_at_rejects(mobilenet):
    with pytest.raises(ValueError, match=r"want strides of .*got \[5\]"):
        layers_at(mobilenet, (5, 16), 224)


@pytest.mark.parametrize("size", [64, 97, 160, 300])
def test_tiny_net_goes_down_to_one_cell(size):
    backbone = TinyNet(size).eval()
    sides = [side for _, side in feature_shapes(backbone, size)]
    assert sides[0] == math.ceil(size / 8)
    assert sides[-1] == 1
    assert all(small == math.ceil(big / 2) for big, small in itertools.pairwise(sides))
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, size, size))
    assert [each.shape[2] for each in maps] == sides
