"""Priors against the Caffe original's numbers, torchvision's generator and known facts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ssdkern import PriorConfig, make_priors
from ssdkern.priors import prior_config

GOLDEN = Path(__file__).parent / "golden/match.npz"
NAMES = ("ssd300-voc", "ssd300-coco", "ssd512-voc", "ssd512-coco")


def differing(a, b):
    return ((a - b).abs() > 1e-6).any(1)


@pytest.mark.parametrize("name", NAMES)
def test_matches_caffe(name):
    with np.load(GOLDEN) as golden:
        expected = golden[f"{name.replace('-', '_')}/priors"]
    priors = make_priors(name)
    assert priors.dtype == torch.float32
    assert len(priors) == (8732 if "300" in name else 24564)
    np.testing.assert_allclose(priors, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "crossing", "outside"),
    [
        ("ssd300-voc", 2869, 114),
        ("ssd300-coco", 2223, 114),
        ("ssd512-voc", 5486, 0),
        ("ssd512-coco", 4118, 0),
    ],
)
def test_priors_reach_beyond_the_image(name, crossing, outside):
    priors = make_priors(name)
    centres = (priors[:, :2] + priors[:, 2:]) / 2
    assert ((priors < 0) | (priors > 1)).any(1).sum() == crossing
    assert (centres > 1 + 1e-6).any(1).sum() == outside


def test_sizes_in_pixels():
    shapes = prior_config("ssd300-voc").shapes(3)
    expected = [(162, 162), (185.76, 185.76), (229.10, 114.55), (114.55, 229.10)]
    expected += [(280.59, 93.53), (93.53, 280.59)]
    np.testing.assert_allclose(shapes, expected, atol=0.005)
    assert prior_config("ssd512-coco").min_sizes == (20, 51, 133, 215, 296, 378, 460)
    assert prior_config("ssd512-voc", "lufficc").max_sizes[-1] == 537.65
    np.testing.assert_allclose(prior_config("ssd512-voc", "lufficc").min_sizes[0], 35.84)


def test_torchvision_rule_is_torchvisions():
    detection = pytest.importorskip("torchvision.models.detection")
    model = detection.ssd300_vgg16(weights=None, weights_backbone=None)
    images = detection.image_list.ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    maps = [torch.zeros(1, 1, side, side) for side in (38, 19, 10, 5, 3, 1)]
    theirs = model.anchor_generator(images, maps)[0] / 300
    ours = make_priors("ssd300-coco", rule="torchvision")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-7)
    changed = differing(ours, make_priors("ssd300-coco")).nonzero().flatten()
    assert changed.tolist() == [8730, 8731]


@pytest.mark.parametrize(("name", "count"), [("ssd300-voc", 134), ("ssd300-coco", 116)])
def test_amdegroot_rule_moves_known_priors(name, count):
    ours, theirs = make_priors(name), make_priors(name, rule="amdegroot")
    assert differing(ours, theirs).sum() == count
    moved = (theirs - ours)[:, 2:].add((theirs - ours)[:, :2]).abs().max() / 2
    assert abs(moved - 4 / 300) < 1e-6
    assert torch.equal(theirs, make_priors(name, rule="lufficc"))


def test_nvidia_rule_reorders_amdegroots():
    config = prior_config("ssd300-coco")
    theirs, start, expected = make_priors("ssd300-coco", rule="amdegroot"), 0, []
    for side, kinds in zip(config.feature_maps, config.boxes_per_cell, strict=True):
        part = theirs[start : start + side * side * kinds].view(side * side, kinds, 4)
        expected.append(part.transpose(0, 1).reshape(-1, 4))
        start += side * side * kinds
    assert torch.equal(make_priors("ssd300-coco", rule="nvidia"), torch.cat(expected))


def test_mmdet_has_the_caffe_numbers():
    for name in NAMES:
        assert prior_config(name, "mmdet") == prior_config(name)


def test_sgrvinod_rule():
    config = prior_config("ssd300-voc", "sgrvinod")
    assert config.boxes_per_cell == (4, 6, 6, 6, 4, 4)
    priors = make_priors(config)
    assert len(priors) == 8732
    sizes = (priors[:, 2:] - priors[:, :2])[5776 + 3 * 6 : 5776 + 4 * 6]
    ratios = (sizes[:, 0] / sizes[:, 1]).tolist()
    np.testing.assert_allclose(ratios, [1, 1, 2, 3, 0.5, 0.333], rtol=1e-5)
    centre = (priors[5776, :2] + priors[5776, 2:]) / 2
    np.testing.assert_allclose(centre, [0.5 / 19] * 2, rtol=1e-5)


def test_even_spacing_is_the_papers():
    config = PriorConfig.for_feature_maps(300, (38, 19, 10, 5, 3, 1))
    np.testing.assert_allclose(config.min_sizes, (30, 60, 112.5, 165, 217.5, 270))
    assert config.aspect_ratios == prior_config("ssd300-voc").aspect_ratios
    maps = (64, 32, 16, 8, 4, 2, 1)
    config = PriorConfig.for_feature_maps(512, maps, first_ratio=0.07, min_ratio=0.15)
    nominal = (35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8)
    np.testing.assert_allclose(config.min_sizes, nominal)
    np.testing.assert_allclose(config.max_sizes[-1], 537.6)


def test_any_maps_and_scales():
    config = PriorConfig.for_feature_maps(
        200, (13, 4), scales=(0.02, 0.1, 0.5), aspect_ratios=(2, 1.5)
    )
    priors = make_priors(config)
    assert len(priors) == 6 * (13 * 13 + 4 * 4)
    # row 1, column 2 of the first map: the small square around its centre
    box = priors[6 * (13 + 2)]
    np.testing.assert_allclose(
        box, [2.5 / 13 - 0.01, 1.5 / 13 - 0.01, 2.5 / 13 + 0.01, 1.5 / 13 + 0.01], rtol=1e-5
    )
    squares = PriorConfig.for_feature_maps(200, (13, 4), aspect_ratios=())
    assert squares.boxes_per_cell == (2, 2)
    single = PriorConfig.for_feature_maps(64, (8,))
    assert len(make_priors(single)) == 8 * 8 * 6


def test_one_map_tiled_several_times():
    """The paper's row of Table 3 with conv7 alone: 24 boxes a cell, 8664 in all."""
    low, high = (40, 100, 180, 260), (100, 180, 240, 340)
    config = PriorConfig(300, (19,), (low,), (high,), ((2, 3),), (16,))
    assert config.boxes_per_cell == (24,)
    assert len(make_priors(config)) == 8664


def test_corners_are_clipped():
    config = prior_config("ssd300-voc")
    clipped = make_priors(PriorConfig(**{**config.to_dict(), "clip": "corners"}))
    assert torch.equal(clipped, make_priors(config).clamp(0, 1))


def test_survives_json():
    config = prior_config("ssd512-voc", "nvidia")
    assert PriorConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(prior_config("ssd512-voc", "nvidia"))


def test_rejects():
    with pytest.raises(ValueError, match="want priors of"):
        make_priors("ssd400")
    with pytest.raises(ValueError, match="want a rule of"):
        make_priors("ssd512-voc", rule="sgrvinod")
    with pytest.raises(ValueError, match="one entry per feature map"):
        PriorConfig(300, (38, 19), (30,), (60,), ((2,),))
    with pytest.raises(ValueError, match="0 < min size"):
        PriorConfig(300, (38,), (60,), (30,), ((2,),))
    with pytest.raises(ValueError, match="clip rule"):
        PriorConfig(300, (38,), (30,), (60,), ((2,),), clip="box")
    with pytest.raises(ValueError, match="an order"):
        PriorConfig(300, (38,), (30,), (60,), ((2,),), order="layer")
    with pytest.raises(ValueError, match="3 scales"):
        PriorConfig.for_feature_maps(300, (38, 19), scales=(0.1, 0.2))
