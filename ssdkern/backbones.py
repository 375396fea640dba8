"""Networks that turn an image into the source maps of an SSD.

A backbone is a module that maps [B, 3, S, S] to a list of maps [B, C, H, H], large to small.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def caffe_xavier_(module):
    """Fills every convolution as Caffe's "xavier" does: U(+-sqrt(3 / fan_in)), bias 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            bound = math.sqrt(3 / layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def _run_on_meta(module, image_size):
    """What `module` returns for an image, without computing it."""
    meta = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    image = torch.empty(1, 3, image_size, image_size, device="meta")
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return torch.func.functional_call(module, meta, (image,))
    except RuntimeError as error:
        name = type(module).__name__
        raise ValueError(
            f"want an image size {name} can take, got {image_size}: {error}"
        ) from error
    finally:
        module.train(training)


def feature_shapes(backbone, image_size):
    """The (channels, side) of every source map at `image_size`, without computing any.

    Raises:
        ValueError: the image is too small for the backbone, or a map is not square.
    """
    maps = _run_on_meta(backbone, image_size)
    if any(each.shape[2] != each.shape[3] for each in maps):
        raise ValueError(f"want square source maps, got {[tuple(each.shape) for each in maps]}")
    return [(each.shape[1], each.shape[2]) for each in maps]


def layers_at(module, strides, image_size):
    """Names of the last nodes of a torchvision model whose maps have the given strides.

    Raises:
        ValueError: no node has one of the strides.
    """
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    every = create_feature_extractor(module, get_graph_node_names(module)[1])
    last = {}
    for name, value in _run_on_meta(every, image_size).items():
        if isinstance(value, torch.Tensor) and value.dim() == 4 and value.shape[2] > 1:
            last[math.ceil(image_size / value.shape[2])] = name
    if missing := set(strides) - set(last):
        raise ValueError(f"want strides of {sorted(last)}, got {sorted(missing)}")
    return [last[stride] for stride in strides]


class L2Norm(nn.Module):
    """Scales every location to unit length over the channels, times a learned scale per channel.

    Source: Normalize layer of the authors' Caffe code, epsilon inside the root.
    """

    def __init__(self, channels, scale=20.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x):
        if x.dtype == torch.float32:
            # sqrt(sum + 1e-10); exporters to ONNX drop a sum with as little as that
            norm = x.square().sum(1, keepdim=True).mul(1e10).add(1).sqrt().mul(1e-5)
            return x / norm * self.weight[:, None, None]
        # with the mean in place of the sum one kernel reads and writes half precision once
        channels = len(self.weight)
        weight = (self.weight / math.sqrt(channels)).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):  # it would convert to float32
            x = F.rms_norm(x.permute(0, 2, 3, 1), (channels,), weight, 1e-10 / channels)
        return x.permute(0, 3, 1, 2)


def _vgg_trunk(atrous):
    """VGG16 up to fc7 as a list; convolutions stand at the indices of the public weight files."""
    layers, channels = [], 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
    if atrous:
        layers[-1] = nn.MaxPool2d(3, 1, 1)
        dense, width = nn.Conv2d(512, 1024, 3, padding=6, dilation=6), 1024
    else:
        dense, width = nn.Conv2d(512, 4096, 7, padding=3), 4096
    layers += [dense, nn.ReLU(inplace=True), nn.Conv2d(width, width, 1), nn.ReLU(inplace=True)]
    return layers, width


class VGG16(nn.Module):
    """VGG16 with the extra layers of SSD300 or SSD512.

    Args:
        variant: 300 or 512, which names the extra layers.
        image_size: None means `variant`. Where a map of the 300 variant is too small for an
            unpadded 3x3 convolution, that convolution is padded and strides by 2.
        atrous: the reduced net with dilated fc6. False: the full one, fc7 of stride 32, and
            conv5_3 as a source (Liu et al. 2016, Table 2).
        sources: indices of the maps to keep, or None for all; layers behind the last are dropped.

    Source: Liu et al. 2016, section 3, and the authors' scripts. What follows fc7 without atrous
    was never published: here the extra layers go on as in SSD300, with one stage fewer.
    """

    def __init__(self, variant=300, image_size=None, *, atrous=True, sources=None):
        super().__init__()
        if variant not in (300, 512):
            raise ValueError(f"want variant 300 or 512, got {variant}")
        trunk, width = _vgg_trunk(atrous)
        self.taps = (22,) if atrous else (22, 29)
        side = math.ceil((image_size or variant) / (16 if atrous else 32))  # of fc7: all pools ceil
        kinds = ["half", "half", "valid", "valid"] if variant == 300 else ["half"] * 4 + ["last"]
        plan = [(256, 512), *[(128, 256)] * (len(kinds) - 1)]
        if not atrous:
            kinds, plan = kinds[1:], plan[:-1]
        total = len(self.taps) + 1 + len(kinds)
        self.sources = tuple(range(total)) if sources is None else tuple(sorted(sources))
        if not self.sources or not set(self.sources) <= set(range(total)):
            raise ValueError(f"want sources among 0..{total - 1}, got {sources}")
        self.trunk = nn.Sequential(*trunk)
        self.l2norm = L2Norm(512) if 0 in self.sources else None
        self.extras = nn.ModuleList()
        for kind, (middle, out) in list(zip(kinds, plan, strict=True))[: self._extras_needed()]:
            padded = kind == "half" or (kind == "valid" and side < 3)
            kernel = 4 if kind == "last" else 3
            stride, padding = (2, 1) if padded else (1, 1 if kind == "last" else 0)
            self.extras += [nn.Conv2d(width, middle, 1)]
            self.extras += [nn.Conv2d(middle, out, kernel, stride, padding)]
            side = (side + 2 * padding - kernel) // stride + 1
            width = out
        caffe_xavier_(self)

    def _extras_needed(self):
        return max(self.sources[-1] - len(self.taps), 0)

    def forward(self, x):
        maps = []
        for index, layer in enumerate(self.trunk):
            x = layer(x)
            if index in self.taps:
                # the ReLUs work in place, but none follows a tap before its pool
                maps.append(x)
        maps.append(x)
        for first, second in zip(self.extras[::2], self.extras[1::2], strict=True):
            x = F.relu(second(F.relu(first(x))))
            maps.append(x)
        if self.l2norm is not None:
            maps[0] = self.l2norm(maps[0])
        return [maps[index] for index in self.sources]


def conv_bn(in_channels, out_channels, kernel=3, stride=1, groups=1, relu=True):
    """A convolution without bias, batch normalisation and, by default, a ReLU."""
    padding = (kernel - 1) // 2
    layers = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


def _he_(module):
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return module


class FeatureBackbone(nn.Module):
    """Any feature extractor of torchvision or timm, followed by SSD's extra layers.

    Args:
        body: a module that returns its maps as a list or dict, as timm's ``features_only=True``
            models do; with `layers`, any module torchvision can trace.
        layers: names of the nodes to take from `body`, large maps to small ones, such as
            ``["features.14.conv.0", "features.18"]``; see
            ``torchvision.models.feature_extraction.get_graph_node_names``.
        image_size: side of the input.
        extras: channels of the maps added behind the last, each of half the side; None adds maps
            of 512, 256, 256 and then 128 channels until the side is 1.
        neck: channels to which a 1x1 convolution brings every map of `body` before the heads;
            None leaves them. Heads on 1280 channels are slow and learn badly.

    Raises:
        ValueError: the extractor cannot take the image size.
    """

    def __init__(self, body, layers=None, *, image_size, extras=None, neck=None):
        super().__init__()
        if layers is not None:
            from torchvision.models.feature_extraction import create_feature_extractor

            body = create_feature_extractor(body, list(layers))
        self.body = body
        self.neck = nn.ModuleList()
        self.extras = nn.ModuleList()
        shapes = feature_shapes(self, image_size)
        channels, side = shapes[-1]
        if extras is None:
            count = math.ceil(math.log2(side)) if side > 1 else 0
            extras = [512, 256, 256, *[128] * count][:count]
        for width in extras:
            self.extras.append(
                nn.Sequential(
                    conv_bn(channels, width // 2, 1),
                    conv_bn(width // 2, width // 2, 3, 2, groups=width // 2),
                    conv_bn(width // 2, width, 1),
                )
            )
            channels = width
        if neck is not None:
            self.neck.extend(conv_bn(width, neck, 1) for width, _ in shapes)
        _he_(self.extras)
        _he_(self.neck)

    def forward(self, x):
        maps = self.body(x)
        maps = list(maps.values()) if isinstance(maps, dict) else list(maps)
        more = maps[-1:]
        for extra in self.extras:
            more.append(extra(more[-1]))
        if self.neck:
            maps = [layer(each) for layer, each in zip(self.neck, maps, strict=True)]
        return maps + more[1:]


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input is added."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(channels, channels), conv_bn(channels, channels, relu=False)
        )

    def forward(self, x):
        return F.relu(x + self.body(x), inplace=True)


class TinyNet(nn.Module):
    """A small residual net that learns from scratch on a CPU; maps from stride 8 down to 1x1.

    Dense 3x3 convolutions and batch normalisation throughout: on a CPU depthwise ones cost more
    time than they save work.

    Args:
        image_size: side of the input; sets the number of maps.
        width: channels of the stride-8 map.
    """

    def __init__(self, image_size, width=64):
        super().__init__()
        self.stem = nn.Sequential(
            conv_bn(3, width // 4, 3, 2), conv_bn(width // 4, width // 2, 3, 2)
        )
        stages = [(width, 1), (2 * width, 1), (2 * width, 1)]
        channels, side = width // 2, math.ceil(image_size / 4)
        self.stages = nn.ModuleList()
        while side > 1:
            out, depth = stages.pop(0) if stages else (width, 0)
            blocks = [Residual(out) for _ in range(depth)]
            self.stages.append(nn.Sequential(conv_bn(channels, out, 3, 2), *blocks))
            channels, side = out, math.ceil(side / 2)
        _he_(self)

    def forward(self, x):
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
