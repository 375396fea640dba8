"""Weights of others: the same outputs as torchvision, and the names of the public checkpoints."""

import os
from pathlib import Path

import pytest
import torch

from ssdkern import make_priors
from ssdkern.model import ssd300, ssd300_mobilenet_v2, ssd512, ssd_tiny
from ssdkern.weights import load_backbone_weights, load_weights, read_state

detection = pytest.importorskip("torchvision.models.detection")
CONVS = {
    "conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10, "conv3_2": 12,
    "conv3_3": 14, "conv4_1": 17, "conv4_2": 19, "conv4_3": 21, "conv5_1": 24, "conv5_2": 26,
    "conv5_3": 28, "fc6": 31, "fc7": 33,
}  # fmt: skip


@pytest.fixture(scope="module")
def torchvision_ssd(tmp_path_factory):
    """Torchvision's SSD300 with weights that give scores off 0 and 1, and its state dict."""
    torch.manual_seed(1)
    model = detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=7).eval()
    for parameter in model.backbone.parameters():
        if parameter.dim() == 4:
            torch.nn.init.kaiming_normal_(parameter)
    with torch.no_grad():
        for head, scale in (
            (model.head.classification_head, 0.005),
            (model.head.regression_head, 0.02),
        ):
            for parameter in head.parameters():
                parameter.mul_(scale)
    file = tmp_path_factory.mktemp("weights") / "torchvision.pth"
    torch.save(model.state_dict(), file)
    return model, file


def test_equals_torchvision(torchvision_ssd):
    theirs, file = torchvision_ssd
    ours = ssd300(7, like="torchvision").eval()
    assert len(load_weights(ours, file).loaded) == len(theirs.state_dict())
    images = [torch.rand(3, 300, 300), torch.rand(3, 240, 320)]
    with torch.no_grad():
        batch = theirs.transform(images)[0].tensors
        expected = theirs.head(list(theirs.backbone(batch).values()))
        warped = [
            torch.nn.functional.interpolate(i[None], (300, 300), mode="bilinear") for i in images
        ]
        logits, offsets = ours.heads(torch.cat(warped))
        found, wanted = ours(images), theirs(images)
    for value, other in ((logits, "cls_logits"), (offsets, "bbox_regression")):
        scale = expected[other].abs().max()
        torch.testing.assert_close(value / scale, expected[other] / scale, rtol=0, atol=1e-5)
    assert wanted[0]["scores"].unique().numel() > 150
    for one, other, image in zip(found, wanted, images, strict=True):
        assert len(one["boxes"]) == 200
        torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-4, atol=0)
        same = (one["labels"] == other["labels"]) & (
            (one["boxes"] - other["boxes"]).abs().amax(1) < 1e-3 * max(image.shape)
        )
        # neighbours in rank may swap where their scores round apart
        assert same.float().mean() > 0.97


def test_losses_equal_torchvisions(torchvision_ssd):
    theirs, file = torchvision_ssd
    ours = ssd300(7, like="torchvision")
    load_weights(ours, file)
    images = [torch.rand(3, 300, 300)]
    boxes = torch.tensor([[10.0, 20.0, 100.0, 200.0], [50.0, 60.0, 290.0, 250.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 6])}]
    with torch.no_grad():
        expected = theirs.train()(images, targets)
        losses = ours(images, targets)
    theirs.eval()
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=0)


def public_names(layout, extras):
    """Names of a public SSD300 or 512 and ours, written out from their sources."""
    maps = extras + 2
    extra = [(i, j) for i in range(extras) for j in (0, 1)]
    if layout == "amdegroot":
        trunk = {c: f"vgg.{n}" for c, n in CONVS.items()}
        rest = ["L2Norm", *(f"extras.{2 * i + j}" for i, j in extra)]
        heads = [(f"loc.{i}", f"conf.{i}") for i in range(maps)]
    elif layout == "lufficc":
        trunk = {c: f"backbone.vgg.{n}" for c, n in CONVS.items()}
        rest = ["backbone.l2_norm", *(f"backbone.extras.{2 * i + j}" for i, j in extra)]
        heads = [
            (f"box_head.predictor.reg_headers.{i}", f"box_head.predictor.cls_headers.{i}")
            for i in range(maps)
        ]
    else:
        trunk = {c: f"backbone.features.{n}" for c, n in CONVS.items()}
        rest = ["neck.l2_norm", *(f"neck.extra_layers.{i}.{j}.conv" for i, j in extra)]
        heads = [(f"bbox_head.reg_convs.{i}.0", f"bbox_head.cls_convs.{i}.0") for i in range(maps)]
    theirs = [*trunk.values(), *rest, *(name for pair in heads for name in pair)]
    ours = [f"backbone.trunk.{n}" for n in CONVS.values()]
    ours += ["backbone.l2norm", *(f"backbone.extras.{2 * i + j}" for i, j in extra)]
    ours += [name for i in range(maps) for name in (f"loc.{i}", f"conf.{i}")]
    return dict(zip(theirs, ours, strict=True))


@pytest.mark.parametrize("layout", ["amdegroot", "lufficc", "mmdet"])
@pytest.mark.parametrize(("build", "extras"), [(ssd300, 4), (ssd512, 5)])
def test_names_of_public_checkpoints(layout, build, extras, tmp_path):
    model = build(3, like=layout)
    own, state, expected = model.state_dict(), {}, {}
    for index, (theirs, ours) in enumerate(public_names(layout, extras).items()):
        for kind in ("weight", "bias"):
            name = f"{ours}.{kind}"
            if name in own:
                # one stored number a tensor keeps the file small
                state[f"{theirs}.{kind}"] = torch.tensor(float(index)).expand(own[name].shape)
                expected[name] = float(index)
    assert expected.keys() == own.keys()
    wrapped = {"lufficc": {"model": state}, "mmdet": {"state_dict": state, "meta": {"epoch": 1}}}
    torch.save(wrapped.get(layout, state), tmp_path / "public.pth")
    report = load_weights(model, tmp_path / "public.pth")
    assert not report.ignored
    assert not report.missing
    for name, value in model.state_dict().items():
        assert value.min() == value.max() == expected[name], name


def test_mmdet_background_comes_first(tmp_path):
    model = ssd300(3, like="mmdet")
    state = {
        theirs: model.state_dict()[f"{ours}.{kind}"]
        for theirs, ours, kind in (
            (f"{theirs}.{kind}", ours, kind)
            for theirs, ours in public_names("mmdet", 4).items()
            for kind in ("weight", "bias")
            if f"{ours}.{kind}" in model.state_dict()
        )
    }
    state["bbox_head.cls_convs.0.0.bias"] = torch.arange(
        12.0
    )  # 4 boxes of classes 1, 2, background
    torch.save({"state_dict": state}, tmp_path / "mmdet.pth")
    load_weights(model, tmp_path / "mmdet.pth")
    assert model.conf[0].bias.tolist() == [2, 0, 1, 5, 3, 4, 8, 6, 7, 11, 9, 10]


def test_other_classes_keep_their_heads(torchvision_ssd):
    _, file = torchvision_ssd
    model = ssd300(4)
    with pytest.raises(ValueError, match=r"want conf\.0\.weight \(16, 512, 3, 3\), got \(28, 512"):
        load_weights(model, file)
    before = model.conf[0].weight.clone()
    report = load_weights(model, file, heads=False)
    assert torch.equal(model.conf[0].weight, before)
    assert len(report.missing) == 24
    assert "not in the file: 24" in str(report)


def test_models_like_others():
    assert torch.equal(
        ssd300(3, like="torchvision").priors, make_priors("ssd300-coco", rule="torchvision")
    )
    assert torch.equal(
        ssd300(3, like="amdegroot").priors, make_priors("ssd300-voc", rule="amdegroot")
    )
    with pytest.raises(ValueError, match="want like of"):
        ssd300(3, like="yolo")


def test_reduced_vgg_backbone(tmp_path):
    model = ssd300(2)
    own = model.backbone.trunk.state_dict()
    state = {
        name: torch.tensor(float(i)).expand(t.shape) for i, (name, t) in enumerate(own.items())
    }
    torch.save(state, tmp_path / "vgg16_reducedfc.pth")
    report = load_backbone_weights(model.backbone, tmp_path / "vgg16_reducedfc.pth")
    assert len(report.loaded) == 30
    assert all(name.startswith(("extras.", "l2norm.")) for name in report.missing)
    for index, value in enumerate(model.backbone.trunk.state_dict().values()):
        assert value.min() == value.max() == index


@pytest.mark.parametrize("usable", [True, False])
def test_torchvision_vgg_backbone(usable, tmp_path):
    """fc6 and fc7 are thinned out, but not where the file has NaN there, as one public file has."""
    model = ssd300(2)
    state = {
        f"features.{name}": value
        for name, value in model.backbone.trunk.state_dict().items()
        if int(name.split(".")[0]) < 31
    }
    fc6 = torch.arange(4096.0)[:, None, None, None].expand(4096, 512, 7, 7)
    fc6 = fc6 + torch.arange(49.0).view(7, 7) / 64 if usable else fc6 * float("nan")
    state["classifier.0.weight"] = fc6.reshape(4096, -1)
    state["classifier.0.bias"] = torch.arange(4096.0)
    state["classifier.3.weight"] = torch.arange(4096.0).expand(4096, 4096)
    state["classifier.3.bias"] = torch.arange(4096.0)
    state["classifier.6.bias"] = torch.zeros(1000)
    torch.save(state, tmp_path / "vgg16.pth")
    before = model.backbone.trunk[31].weight.clone()
    report = load_backbone_weights(model.backbone, tmp_path / "vgg16.pth")
    assert len(report.loaded) == (30 if usable else 26)
    assert "classifier.6.bias" in report.ignored
    if not usable:
        assert torch.equal(model.backbone.trunk[31].weight, before)
        return
    taps = torch.tensor([0, 3, 6, 21, 24, 27, 42, 45, 48]) / 64
    assert torch.equal(model.backbone.trunk[31].weight[5, 7].flatten(), 20 + taps)
    assert torch.equal(model.backbone.trunk[33].weight[3, :4].flatten(), torch.arange(0.0, 16, 4))


def test_torchvision_mobilenet_backbone(tmp_path):
    from torchvision.models import mobilenet_v2

    theirs = mobilenet_v2(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "mobilenet.pth")
    model = ssd300_mobilenet_v2(3, 96, backbone_weights=tmp_path / "mobilenet.pth").eval()
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        found = model.backbone.body(image)["features.18"]
        torch.testing.assert_close(found, theirs.eval().features(image))


def test_imagenet_mobilenet():
    data = os.environ.get("SSDKERN_TEST_DATA")
    file = Path(data or "") / "weights/mobilenet_v2-b0353104.pth"
    if not data or not file.exists():
        pytest.skip("SSDKERN_TEST_DATA names no folder with weights/mobilenet_v2-b0353104.pth")
    model = ssd300_mobilenet_v2(3, 96)
    report = load_backbone_weights(model.backbone, file)
    assert len(report.loaded) == 312
    assert report.ignored == ["classifier.1.weight", "classifier.1.bias"]
    assert all(name.startswith(("extras.", "neck.")) for name in report.missing)


def test_own_files(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    first, second, third = ssd_tiny(3, 64), ssd_tiny(3, 64), ssd_tiny(5, 64)
    save_file(first.state_dict(), tmp_path / "own.safetensors")
    load_weights(second, tmp_path / "own.safetensors")
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    load_backbone_weights(third.backbone, tmp_path / "own.safetensors")
    assert torch.equal(third.backbone.stem[0][0].weight, first.backbone.stem[0][0].weight)


def test_rejects(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"other\.pth: want weights of TinyNet such as .* got \['a'\]"
    ):
        load_backbone_weights(ssd_tiny(2, 64).backbone, tmp_path / "other.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="got a dict without tensors"):
        read_state(tmp_path / "empty.pth")
    torch.save(ssd_tiny(2, 64), tmp_path / "pickled.pth")
    with pytest.raises(ValueError, match="want a file of tensors and plain values"):
        read_state(tmp_path / "pickled.pth")
    for name, content in (("a.pth", b""), ("b.pth", b"PK\x03\x04"), ("c.safetensors", b"{}")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: want a file of .*, got"):
            read_state(tmp_path / name)
