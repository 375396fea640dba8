"""SSD: the paper's counts, order of the outputs, torchvision's interface, switches, compilation."""

import json

import pytest
import torch
from torch import nn

import ssdkern
from ssdkern import PriorConfig, multibox_loss
from ssdkern.model import (
    MODELS,
    SSD,
    ForExport,
    build,
    from_config,
    ssd300,
    ssd300_mobilenet_v2,
    ssd512,
    ssd_tiny,
)

TRUTH = (
    torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.2, 0.3, 0.9, 0.8], [0.6, 0.1, 0.9, 0.3]]),
    torch.tensor([1, 2, 1]),
    torch.tensor([0, 2, 3], dtype=torch.int32),
)


class Counting(nn.Module):
    """A backbone whose maps count their cells."""

    def forward(self, x):
        return [
            torch.arange(side * side, dtype=x.dtype, device=x.device)
            .view(1, 1, side, side)
            .expand(len(x), -1, -1, -1)
            for side in (3, 2)
        ]


def counting_model(**options):
    config = PriorConfig.for_feature_maps(30, (3, 2), aspect_ratios=[(2,), ()])
    return SSD(Counting(), config, 3, **options)


@pytest.mark.parametrize(
    ("model", "classes", "count", "priors"),
    [
        (ssd300, 21, 26_285_486, 8732),
        (ssd300, 91, 35_641_826, 8732),
        (ssd512, 21, 27_188_676, 24564),
        (ssd512, 81, 36_038_196, 24564),
    ],
)
def test_parameter_counts(model, classes, count, priors):
    with torch.device("meta"):
        made = model(classes)
    assert sum(parameter.numel() for parameter in made.parameters()) == count
    assert made.priors.shape == (priors, 4)


def test_outputs_are_in_the_order_of_the_priors():
    """Source map, row, column, box of the cell; then class or coordinate."""
    model = counting_model()
    with torch.no_grad():
        for head in (*model.loc, *model.conf):
            head.weight.zero_()
            head.weight[:, :, 1, 1] = 1
            head.bias.copy_(torch.arange(len(head.bias)) / 100)
        logits, offsets = model.heads(torch.rand(2, 3, 30, 30))
    for output, width in ((logits, 3), (offsets, 4)):
        assert output.shape == (2, len(model.priors), width)
        rows = [
            [cell + (kind * width + column) / 100 for column in range(width)]
            for side, kinds in ((3, 4), (2, 2))
            for cell in range(side * side)
            for kind in range(kinds)
        ]
        torch.testing.assert_close(output, torch.tensor(rows).expand_as(output))


def test_images_of_bytes_and_of_fractions_are_the_same():
    model = ssd_tiny(3, 64).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        for one, other in zip(model.heads(images), model.heads(images / 255), strict=True):
            torch.testing.assert_close(one, other)
        small = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
        one, other = model([small])[0], model([small / 255])[0]
    torch.testing.assert_close(one["scores"], other["scores"])


def test_channels_last_changes_nothing():
    model, images = ssd_tiny(3, 96).eval(), torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        expected = model.heads(images)
        model.to(memory_format=torch.channels_last)
        found = model.heads(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_the_network(dtype):
    model = ssd_tiny(3, 64)
    priors, images = model.priors, torch.rand(2, 3, 64, 64)
    model.eval().to(dtype)
    assert model.mean.dtype == model.conf[0].weight.dtype == dtype
    assert torch.equal(model.priors, priors)
    with torch.no_grad():
        found = model.detect(images)
        expected = ssdkern.detect(*model.heads(images), priors)
    torch.testing.assert_close(found, expected)
    assert model.double().priors.dtype == torch.float64


def test_eval_returns_pixels_of_each_image():
    model = ssd_tiny(3, 64, score_thresh=0.0, detections_per_img=50).eval()
    sizes = [(64, 64), (48, 96), (200, 100)]
    images = [torch.rand(3, *size) for size in sizes]
    with torch.no_grad():
        results = model(images)
        packed = model.detect(torch.cat([model._batch([image]) for image in images]))
    for index, (result, (height, width)) in enumerate(zip(results, sizes, strict=True)):
        assert result.keys() == {"boxes", "scores", "labels"}
        assert len(result["boxes"]) == 50
        assert (result["boxes"][:, 0::2] <= width).all()
        assert (result["boxes"][:, 1::2] <= height).all()
        expected = packed.boxes[index].clamp(0, 1) * torch.tensor([width, height] * 2)
        torch.testing.assert_close(result["boxes"], expected)
        assert (result["scores"].diff() <= 0).all()
        assert set(result["labels"].tolist()) <= {1, 2}


def test_nothing_found():
    model = ssd_tiny(3, 64, score_thresh=0.999).eval()
    with torch.no_grad():
        (result,) = model([torch.rand(3, 64, 64)])
    assert result["boxes"].shape == (0, 4)
    assert result["labels"].shape == (0,)


def test_learns_two_images():
    model = ssd_tiny(3, 64, width=32)
    images = [torch.rand(3, 64, 64), torch.rand(3, 32, 96)]
    targets = [
        {"boxes": TRUTH[0][:2] * 64, "labels": TRUTH[1][:2]},
        {"boxes": TRUTH[0][2:] * torch.tensor([96, 32, 96, 32]), "labels": TRUTH[1][2:]},
    ]
    optimizer = torch.optim.SGD(model.parameter_groups(0.01, 5e-4), momentum=0.9)
    totals = []
    for _ in range(30):
        losses = model(images, targets)
        total = losses["bbox_regression"] + losses["classification"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.3 * totals[0]


def test_rejects():
    model = ssd_tiny(3, 64)
    with pytest.raises(ValueError, match="want targets in training"):
        model([torch.rand(3, 64, 64)])
    with pytest.raises(ValueError, match="a target for each of 1 images, got 0"):
        model([torch.rand(3, 64, 64)], [])
    with pytest.raises(ValueError, match=r"want priors for source maps of \[3, 2\], got \[38"):
        SSD(Counting(), "ssd300-voc", 3)
    with pytest.raises(ValueError, match="at least 2 classes"):
        ssd_tiny(1)
    with pytest.raises(ValueError, match=r"a function of ssdkern\.model"):
        counting_model().config()
    with pytest.raises(ValueError, match="want a model of"):
        build("ssd_huge", 3)
    with pytest.raises(ValueError, match="trunk of torchvision/NAME"):
        build("tf/resnet", 3)
    with pytest.raises(ValueError, match="want priors for 4 source maps"):
        ssd_tiny(3, 64, prior_config="ssd300-voc")


def test_priors_across_the_border_can_be_ignored():
    """As targets -2: neither positive nor negative, while truth takes the best of the others, as
    in the Caffe original; detection is as before."""
    model = ssd_tiny(3, 64, ignore_cross_boundary=True).eval()
    crossing = ((model.priors < 0) | (model.priors > 1)).any(1)
    assert 0 < crossing.sum() < len(crossing)
    images = torch.rand(2, 3, 64, 64)
    logits, offsets = model.heads(images)
    assert (ssdkern.match_priors(model.priors, TRUTH[0], TRUTH[2])[:, crossing] >= 0).any()
    matched = torch.full((2, len(crossing)), -2, dtype=torch.int32)
    matched[:, ~crossing] = ssdkern.match_priors(model.priors[~crossing], TRUTH[0], TRUTH[2])
    assert set(matched.flatten().tolist()) == {-2, -1, *range(len(TRUTH[0]))}
    expected = multibox_loss(logits, offsets, model.priors, *TRUTH, matched=matched)
    found = model.loss(images, *TRUTH)
    torch.testing.assert_close(found, expected)
    logits.retain_grad()
    expected.classification.backward()
    assert not logits.grad[:, crossing].any()
    assert model.detect(images).prior_index.shape == (2, 200)


def test_ablations_of_the_paper():
    """Tables 2 and 3: fewer ratios, the full VGG16, fewer source maps."""
    with torch.device("meta"):
        assert len(ssd300(21, aspect_ratios=(2,)).priors) == 4 * 1940
        assert len(ssd300(21, aspect_ratios=()).priors) == 2 * 1940
        assert len(ssd300(21, atrous=False).priors) == 8732
        kept = ssd300(21, sources=(0, 1, 2), prior_config="ssd300-coco")
    assert len(kept.priors) == 5776 + 2166 + 600
    assert kept.prior_config.min_sizes == (21, 45, 99)
    tiling = PriorConfig(300, (19,), ((40, 100, 180, 260),), ((100, 180, 240, 340),), ((2, 3),))
    with torch.device("meta"):
        assert len(ssd300(21, sources=(1,), prior_config=tiling).priors) == 8664


@pytest.mark.parametrize("name", ["ssd300", "ssd512", "ssd300_mobilenet_v2", "ssd_tiny"])
def test_any_square_image_size(name):
    size = 288 if name == "ssd512" else 112
    with torch.device("meta"):
        model = build(name, 3, size)
    assert model.image_size == size
    assert model.prior_config.image_size == size
    config = {**model.config(), "image_size": size + 32, "prior_config": None}
    with torch.device("meta"):
        assert from_config(config).image_size == size + 32


def test_small_objects_want_a_finer_map():
    coarse = ssd300_mobilenet_v2(3, 96, small_objects=False)
    fine = ssd300_mobilenet_v2(3, 96)
    assert coarse.prior_config.feature_maps == (6, 3, 2, 1)
    assert fine.prior_config.feature_maps == (12, 6, 3, 2, 1)
    assert fine.prior_config.min_sizes[0] < coarse.prior_config.min_sizes[0]


@pytest.mark.parametrize("library", ["torchvision/resnet18", "timm/resnet18"])
def test_trunks_of_other_libraries(library):
    pytest.importorskip(library.split("/")[0])
    model = build(library, 3, 96)
    assert model.prior_config.feature_maps == (12, 6, 3, 2, 1)
    assert from_config(model.config()).config() == model.config()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ssd_tiny", {"width": 32, "score_thresh": 0.2, "variances": (0.2, 0.2)}),
        ("ssd300_mobilenet_v2", {"separable_heads": True, "small_objects": False, "neck": None}),
        ("ssd300", {"sources": (0, 2), "like": "torchvision", "aspect_ratios": (2,)}),
    ],
)
def test_config_builds_the_same_model(name, options):
    assert name in MODELS
    model = build(name, 4, 96, **options)
    config = json.loads(json.dumps(model.config()))
    again = from_config(config)
    assert again.config() == config
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.priors, model.priors)
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        one, other = model.eval().detect(image), again.eval().detect(image)
    assert all(map(torch.equal, one, other))


def test_parameter_groups():
    """Biases of convolutions learn twice as fast, without decay; norms do not decay."""
    model = ssd300(2)
    groups = model.parameter_groups(1e-3, 5e-4)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(rates) == len(list(model.parameters()))
    assert rates[id(model.conf[0].weight)] == (1e-3, 5e-4)
    assert rates[id(model.backbone.l2norm.weight)] == (1e-3, 5e-4)
    assert rates[id(model.backbone.trunk[0].bias)] == (2e-3, 0)
    model = ssd300_mobilenet_v2(2, 64)
    groups = model.parameter_groups(1.0, 0.1)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    norm = next(m for m in model.backbone.body.modules() if isinstance(m, nn.BatchNorm2d))
    assert rates[id(norm.weight)] == rates[id(norm.bias)] == (1.0, 0)
    assert rates[id(model.backbone.extras[0][0][0].weight)] == (1.0, 0.1)
    assert rates[id(model.loc[0].bias)] == (2.0, 0)


@pytest.mark.parametrize("method", ["heads", "detect"])
def test_exports(method):
    model = ssd_tiny(3, 64, detections_per_img=20).eval()
    images = torch.rand(2, 3, 64, 64)
    program = torch.export.export(ForExport(model, method), (images,))
    found, expected = program.module()(images), getattr(model, method)(images)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_compiles_whole():
    model = ssd_tiny(3, 64, detections_per_img=20)
    images = torch.rand(2, 3, 64, 64)
    torch._dynamo.reset()
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    expected, found = model.loss(images, *TRUTH), compiled(images, *TRUTH)
    torch.testing.assert_close(found, expected)
    (found.localization + found.classification).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    compiled = torch.compile(model.detect, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model.detect(images))
