"""The models by name: which backbone, priors and colours make one, and how to build it again.

Every function takes, besides its own arguments, those of `ssdkern.SSD` and these:
    prior_config: a PriorConfig, the dict of one, or a name of `make_priors`; None takes the
        model's own. A name is scaled to the image size.
    aspect_ratios: replaces those of the priors: one tuple for all source maps, ``()`` for squares
        alone, or a tuple per map (Liu et al. 2016, Table 2).
    backbone_weights: file of weights for the backbone, see `weights.load_backbone_weights`.
"""

import math
from dataclasses import replace

import torch

from ssdkern import weights
from ssdkern.backbones import VGG16, FeatureBackbone, TinyNet, feature_shapes, layers_at
from ssdkern.priors import PriorConfig
from ssdkern.priors import prior_config as named_priors
from ssdkern.ssd import SSD, ForExport, pack_targets

__all__ = [
    "MODELS",
    "SSD",
    "ForExport",
    "build",
    "from_config",
    "pack_targets",
    "ssd300",
    "ssd300_mobilenet_v2",
    "ssd512",
    "ssd_features",
    "ssd_tiny",
]


def _colours(*mean):
    """VGG16 files take colours in 0..255 less a mean."""
    return {"mean": [each / 255 for each in mean], "std": [1 / 255] * 3}


# what other implementations do otherwise than the Caffe original: (priors, options of SSD)
_LIKE = {
    "caffe": ("voc", _colours(123, 117, 104)),
    "torchvision": (
        "coco",
        {
            **_colours(123, 117, 104),
            "rule": "argmax",
            "max_log_scale": math.log(1000 / 16),
            "clip": True,
        },
    ),
    "amdegroot": ("voc", {**_colours(123, 117, 104), "rule": "argmax"}),
    "lufficc": (
        "voc",
        {**_colours(123, 117, 104), "rule": "argmax", "detections_per_img": 100},
    ),
    "mmdet": (
        "coco",
        {
            **_colours(123.675, 116.28, 103.53),
            "rule": "argmax",
            "max_log_scale": math.log(1000 / 16),
            "clip": True,
            "score_thresh": 0.02,
        },
    ),
}


def _assemble(recipe, backbone, own_priors, options):
    """An SSD of `backbone` that remembers its recipe; `own_priors` is its PriorConfig."""
    options = dict(options)
    given = options.pop("prior_config", None)
    ratios = options.pop("aspect_ratios", None)
    file = options.pop("backbone_weights", None)
    if isinstance(given, dict):
        given = PriorConfig(**given)
    priors = _scaled(given, own_priors) if isinstance(given, str) else given or own_priors
    if ratios is not None:
        if not any(isinstance(each, (list, tuple)) for each in ratios):
            ratios = [ratios] * len(priors.feature_maps)
        priors = replace(priors, aspect_ratios=ratios)
    model = SSD(backbone, priors, recipe["num_classes"], **options)
    if own_priors is not None:
        _quieten(model)
    options.pop("backend", None)
    model.recipe = {**recipe, **options}
    if file is not None:
        weights.load_backbone_weights(model.backbone, file)
    return model


def _quieten(model):
    """Starts the heads at a tenth of their weights, for backbones with batch normalisation.

    On blood cells, 300 steps of 8 images, ssd_tiny learns .84 mAP instead of .76.
    """
    with torch.no_grad():
        for layer in (*model.loc.modules(), *model.conf.modules()):
            if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None:
                layer.weight.mul_(0.1)


def _scaled(name, own, like="caffe"):
    """The named priors, or their sizes and ratios on the maps of `own` at its image size."""
    named = named_priors(name, like)
    if named.feature_maps == own.feature_maps and named.image_size == own.image_size:
        return named
    if len(named.feature_maps) != len(own.feature_maps):
        raise ValueError(
            f"want priors for {len(own.feature_maps)} source maps, "
            f"got {name} with {len(named.feature_maps)}"
        )
    scale = own.image_size / named.image_size
    return replace(
        own,
        min_sizes=[size * scale for size in named.min_sizes],
        max_sizes=[size * scale for size in named.max_sizes],
        aspect_ratios=named.aspect_ratios,
    )


def _even_priors(backbone, image_size, stride=8):
    """Spaced as in the COCO scripts where the first map has stride 8, else as in the VOC ones."""
    maps = [side for _, side in feature_shapes(backbone, image_size)]
    first, least = (0.07, 0.15) if stride <= 8 else (0.1, 0.2)
    return PriorConfig.for_feature_maps(image_size, maps, first_ratio=first, min_ratio=least)


def _vgg(variant, num_classes, image_size, atrous, sources, like, options):
    if like not in _LIKE:
        raise ValueError(f"want like of {tuple(_LIKE)}, got {like!r}")
    image_size = image_size or variant
    data, defaults = _LIKE[like]
    options = {**defaults, **options}
    given = options.get("prior_config")
    if given is None or isinstance(given, str):
        name = given or f"ssd{variant}-{data}"
        with torch.device("meta"):
            whole = VGG16(variant, image_size, atrous=atrous)
        options["prior_config"] = _scaled(name, _even_priors(whole, image_size), like)
        if sources is not None:
            options["prior_config"] = options["prior_config"].subset(sorted(sources))
    backbone = VGG16(variant, image_size, atrous=atrous, sources=sources)
    recipe = {"model": f"ssd{variant}", "num_classes": num_classes, "image_size": image_size}
    recipe |= {"atrous": atrous, "sources": None if sources is None else list(backbone.sources)}
    return _assemble(recipe, backbone, None, options)


def ssd300(num_classes, image_size=None, *, atrous=True, sources=None, like="caffe", **options):
    """SSD300 on VGG16, 26,285,486 parameters at 21 classes.

    Args:
        num_classes: classes, background included.
        image_size: None means 300.
        atrous: False for the full VGG16 with conv5_3 as a source (paper, Table 2).
        sources: indices of the source maps to keep (Table 3).
        like: whose priors, matching and detection rules: ``"caffe"``, ``"torchvision"``,
            ``"amdegroot"``, ``"lufficc"`` or ``"mmdet"``.
        **options: see the module; ``prior_config="ssd300-coco"`` for smaller objects.
    """
    return _vgg(300, num_classes, image_size, atrous, sources, like, options)


def ssd512(num_classes, image_size=None, *, atrous=True, sources=None, like="caffe", **options):
    """SSD512 on VGG16, 27,188,676 parameters at 21 classes. Arguments as for `ssd300`."""
    return _vgg(512, num_classes, image_size, atrous, sources, like, options)


def ssd300_mobilenet_v2(num_classes, image_size=None, *, small_objects=True, neck=256, **options):
    """SSD on torchvision's MobileNetV2.

    Args:
        num_classes: classes, background included.
        image_size: None means 300.
        small_objects: takes a source map of stride 8 too.
        neck: see `FeatureBackbone`.
        **options: see the module.
    """
    from torchvision.models import mobilenet_v2

    image_size = image_size or 300
    layers = ["features.7.conv.0"] if small_objects else []
    layers += ["features.14.conv.0", "features.18"]
    body = mobilenet_v2(weights=None)
    backbone = FeatureBackbone(body, layers, image_size=image_size, neck=neck)
    recipe = {"model": "ssd300_mobilenet_v2", "num_classes": num_classes}
    recipe |= {"image_size": image_size, "small_objects": small_objects, "neck": neck}
    own = _even_priors(backbone, image_size, 8 if small_objects else 16)
    return _assemble(recipe, backbone, own, options)


def ssd_tiny(num_classes, image_size=None, *, width=64, **options):
    """A small SSD that learns from scratch on a CPU.

    Args:
        num_classes: classes, background included.
        image_size: None means 160.
        width: channels of the first source map.
        **options: see the module.
    """
    image_size = image_size or 160
    backbone = TinyNet(image_size, width)
    recipe = {"model": "ssd_tiny", "num_classes": num_classes}
    recipe |= {"image_size": image_size, "width": width}
    return _assemble(recipe, backbone, _even_priors(backbone, image_size), options)


def ssd_features(num_classes, image_size=None, *, trunk, strides=(8, 16, 32), neck=256, **options):
    """SSD on any image classifier of torchvision or timm.

    Args:
        num_classes: classes, background included.
        image_size: None means 300.
        trunk: ``"torchvision/NAME"`` or ``"timm/NAME"``, such as ``"timm/resnet18"``.
        strides: of the source maps taken from the trunk.
        neck: see `FeatureBackbone`.
        **options: see the module.

    Raises:
        ValueError: no such trunk, or it has no map of one of the strides.
    """
    image_size = image_size or 300
    library, _, name = trunk.partition("/")
    if library == "torchvision":
        from torchvision.models import get_model

        body = get_model(name, weights=None)
        layers = layers_at(body, strides, image_size)
    elif library == "timm":
        import timm

        if not timm.is_model(name):
            raise ValueError(f"want a model that timm knows, got {name!r}")
        body = timm.create_model(name, pretrained=False, features_only=True)
        reductions = body.feature_info.reduction()
        if missing := set(strides) - set(reductions):
            raise ValueError(f"want strides of {reductions} for {name}, got {sorted(missing)}")
        kept = [reductions.index(stride) for stride in strides]
        body = timm.create_model(name, pretrained=False, features_only=True, out_indices=kept)
        layers = None
    else:
        raise ValueError(f"want a trunk of torchvision/NAME or timm/NAME, got {trunk!r}")
    backbone = FeatureBackbone(body, layers, image_size=image_size, neck=neck)
    recipe = {"model": "ssd_features", "num_classes": num_classes, "image_size": image_size}
    recipe |= {"trunk": trunk, "strides": list(strides), "neck": neck}
    own = _even_priors(backbone, image_size, min(strides))
    return _assemble(recipe, backbone, own, options)


MODELS = {
    build.__name__: build for build in (ssd300, ssd512, ssd300_mobilenet_v2, ssd_tiny, ssd_features)
}


def build(name, num_classes, image_size=None, **options):
    """A model by name: one of `MODELS`, or a trunk that `ssd_features` knows.

    Raises:
        ValueError: unknown name.
    """
    if "/" in name:
        return ssd_features(num_classes, image_size, trunk=name, **options)
    if name not in MODELS:
        raise ValueError(f"want a model of {tuple(MODELS)} or timm/NAME, got {name!r}")
    return MODELS[name](num_classes, image_size, **options)


def from_config(config):
    """Builds the model that `SSD.config` describes, with fresh weights.

    Raises:
        ValueError: the config names no known model.
    """
    config = dict(config)
    return build(config.pop("model", "none"), **config)
