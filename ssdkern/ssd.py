"""SSD: a backbone, its priors and two convolutions per source map."""

import json
import math

import torch
from torch import nn
from torch.nn import functional as F

from ssdkern.backbones import caffe_xavier_, conv_bn, feature_shapes
from ssdkern.lists import list_detections, pack_targets, send, sides_of
from ssdkern.ops import detect, match_priors, multibox_loss
from ssdkern.priors import make_priors
from ssdkern.priors import prior_config as named_priors


class SSD(nn.Module):
    """Single Shot MultiBox Detector.

    Args:
        backbone: module from images [B, 3, S, S] to a list of source maps, see `backbones`.
        prior_config: a PriorConfig that fits the maps, or a name of `make_priors`.
        num_classes: classes, background included.
        score_thresh, nms_thresh, detections_per_img, topk_candidates: of `ssdkern.detect`.
        iou_thresh, rule: of `ssdkern.match_priors`.
        neg_pos_ratio: of `ssdkern.multibox_loss`.
        variances: divisors of the offsets, ``(centre, size)``.
        max_log_scale, clip: of `ssdkern.detect`; torchvision has ``log(1000 / 16)`` and True.
        ignore_cross_boundary: priors that cross the border take no part in training.
        separable_heads: depthwise heads instead of full 3x3 convolutions.
        mean, std: of the colours in 0..1; the defaults are those of ImageNet.
        backend: of every op.

    Raises:
        ValueError: the priors do not fit the source maps.
    """

    def __init__(
        self,
        backbone,
        prior_config,
        num_classes,
        *,
        score_thresh=0.01,
        nms_thresh=0.45,
        detections_per_img=200,
        iou_thresh=0.5,
        topk_candidates=400,
        neg_pos_ratio=3.0,
        variances=(0.1, 0.2),
        max_log_scale=None,
        clip=False,
        rule="bipartite",
        ignore_cross_boundary=False,
        separable_heads=False,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        backend=None,
    ):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"want at least 2 classes, background included, got {num_classes}")
        if isinstance(prior_config, str):
            prior_config = named_priors(prior_config)
        shapes = feature_shapes(backbone, prior_config.image_size)
        if tuple(side for _, side in shapes) != prior_config.feature_maps:
            raise ValueError(
                f"want priors for source maps of {[side for _, side in shapes]}, "
                f"got {list(prior_config.feature_maps)}"
            )
        self.backbone = backbone
        self.prior_config = prior_config
        self.num_classes = num_classes
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.iou_thresh = iou_thresh
        self.topk_candidates = topk_candidates
        self.neg_pos_ratio = neg_pos_ratio
        self.variances = tuple(variances)
        self.max_log_scale = max_log_scale
        self.clip = clip
        self.rule = rule
        self.backend = backend
        per_cell = prior_config.boxes_per_cell
        head = _separable_head if separable_heads else _head
        widths = [channels for channels, _ in shapes]
        self.loc = nn.ModuleList(map(head, widths, [4 * k for k in per_cell]))
        self.conf = nn.ModuleList(map(head, widths, [num_classes * k for k in per_cell]))
        priors = make_priors(prior_config)
        crossing = ((priors < 0) | (priors > 1)).any(1) if ignore_cross_boundary else None
        self.register_buffer("priors", priors, persistent=False)
        self.register_buffer("crossing", crossing, persistent=False)
        for name, value in (("mean", mean), ("std", std)):
            value = torch.tensor(value, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.recipe = None

    def _apply(self, fn, recurse=True):
        """Half precision is for the network: bfloat16 would move priors by a pixel of 300."""
        priors = self.priors
        super()._apply(fn, recurse)
        if self.priors.dtype in (torch.float16, torch.bfloat16):
            self.priors = priors.to(self.priors.device)
        return self

    @property
    def image_size(self):
        """Side of the square input in pixels."""
        return self.prior_config.image_size

    def heads(self, images):
        """What the network says of every prior.

        Args:
            images (Tensor[B, 3, S, S]): RGB, uint8 in 0..255 or floating in 0..1.

        Returns:
            tuple[Tensor[B, P, C], Tensor[B, P, 4]]: logits and offsets. Compiles and exports.
        """
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        maps = self.backbone((images.to(self.mean.dtype) - self.mean) / self.std)
        return _gather(self.conf, maps, self.num_classes), _gather(self.loc, maps, 4)

    def loss(self, images, gt_boxes, gt_labels, gt_offsets, normalizer=None, backend=None):
        """MultiBox loss of a batch; see `ssdkern.multibox_loss` for the result.

        Args:
            images (Tensor[B, 3, S, S]): as for `heads`.
            gt_boxes (Tensor[T, 4]): xyxy, fractions of the image.
            gt_labels (Tensor[T]): int64 in 1..C-1.
            gt_offsets (Tensor[B + 1]): int32; image b owns rows gt_offsets[b]:gt_offsets[b + 1].
            normalizer: replaces the number of positives of this batch.
            backend: replaces that of the model.
        """
        backend = backend or self.backend
        logits, offsets = self.heads(images)
        priors = self.priors
        if self.crossing is not None:  # a NaN matches nothing, so truth takes others
            priors = priors.masked_fill(self.crossing[:, None], math.nan)
        matched = match_priors(
            priors,
            gt_boxes,
            gt_offsets,
            iou_threshold=self.iou_thresh,
            rule=self.rule,
            backend=backend,
        )
        if self.crossing is not None:
            matched = matched.masked_fill(self.crossing, -2)
        return multibox_loss(
            logits,
            offsets,
            self.priors,
            gt_boxes,
            gt_labels,
            gt_offsets,
            matched=matched,
            neg_pos_ratio=self.neg_pos_ratio,
            variances=self.variances,
            normalizer=normalizer,
            backend=backend,
        )

    def detect(self, images, backend=None):
        """Detections of a batch, boxes as fractions of the image; see `ssdkern.detect`.

        Args:
            images (Tensor[B, 3, S, S]): as for `heads`.
            backend: replaces that of the model.
        """
        logits, offsets = self.heads(images)
        return detect(
            logits,
            offsets,
            self.priors,
            score_threshold=self.score_thresh,
            iou_threshold=self.nms_thresh,
            nms_top_k=self.topk_candidates,
            keep_top_k=self.detections_per_img,
            variances=self.variances,
            max_log_scale=self.max_log_scale,
            clip=self.clip,
            backend=backend or self.backend,
        )

    def forward(self, images, targets=None):
        """Torchvision's interface to a detector.

        The calls are as many whatever the number of images of one size; of several sizes, each is
        warped by itself. Only the list of detections, whose lengths are read, waits for a GPU.

        Args:
            images: list of Tensor[3, H, W], floating in 0..1 or uint8, of any sizes: each is
                warped to the square, bilinear.
            targets: for training, a list of dicts with ``boxes`` Tensor[n, 4], xyxy in pixels,
                and ``labels`` int64 Tensor[n] in 1..C-1.

        Returns:
            In training ``{"bbox_regression", "classification"}``, two scalars. Else a list of
            dicts: ``boxes`` xyxy in pixels of the input, within it, ``scores``, ``labels``.

        Raises:
            ValueError: training without targets, or a target that `pack_targets` refuses.
        """
        sizes = [tuple(image.shape[-2:]) for image in images]
        if not self.training:
            sides = send(sides_of(sizes), self.mean.device)
            found = self.detect(self._batch(images))
            return list_detections(found._replace(boxes=found.boxes.clamp(0, 1)), sides)
        if targets is None:
            raise ValueError("want targets in training, got None")
        truth = pack_targets(targets, sizes, self.num_classes, self.mean.device)
        loss = self.loss(self._batch(images), *truth)
        return {"bbox_regression": loss.localization, "classification": loss.classification}

    def _batch(self, images):
        """[B, 3, S, S] of a list of images, in few calls where they are alike."""
        if len({(image.shape, image.dtype, image.device) for image in images}) > 1:
            return torch.cat([self._batch([image]) for image in images])
        return self._warp(torch.stack(list(images)))

    def _warp(self, images):
        size = (self.image_size, self.image_size)
        scale = 255 if images.dtype == torch.uint8 else 1
        images = send(images, self.mean.device).to(self.mean.dtype) / scale
        return images if images.shape[2:] == size else F.interpolate(images, size, mode="bilinear")

    def parameter_groups(self, lr, weight_decay, *, bias_lr=2.0):
        """Groups for an optimiser, by the reference's rule.

        Args:
            lr: learning rate of the weights.
            weight_decay: decay of the weights of convolutions and of L2Norm.
            bias_lr: the biases of convolutions learn `bias_lr` times as fast, without decay, as
                in the Caffe original. Normalisation layers have the plain rate without decay.
        """
        norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
        groups = {}
        for module in self.modules():
            plain = isinstance(module, norms)
            for name, parameter in module.named_parameters(recurse=False):
                rate = lr * bias_lr if name == "bias" and not plain else lr
                decay = 0.0 if plain or name == "bias" else weight_decay
                if parameter.requires_grad:
                    groups.setdefault((rate, decay), []).append(parameter)
        return [{"params": p, "lr": r, "weight_decay": d} for (r, d), p in groups.items()]

    def config(self):
        """What `from_config` needs to build this model again, as plain values.

        Raises:
            ValueError: the model was not made by a function of `ssdkern.model`.
        """
        if self.recipe is None:
            raise ValueError("want a model made by a function of ssdkern.model, got a custom SSD")
        return json.loads(json.dumps({**self.recipe, "prior_config": self.prior_config.to_dict()}))


class ForExport(nn.Module):
    """One method of an SSD as a module, which is what ``torch.export`` takes.

    Args:
        model: an SSD.
        method: ``"detect"`` or ``"heads"``.
    """

    def __init__(self, model, method="detect"):
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, images):
        return tuple(getattr(self.model, self.method)(images))  # which a program can be saved with


def _head(channels, out):
    return caffe_xavier_(nn.Conv2d(channels, out, 3, padding=1))


def _separable_head(channels, out):
    depthwise = conv_bn(channels, channels, groups=channels)
    return caffe_xavier_(nn.Sequential(depthwise, nn.Conv2d(channels, out, 1)))


def _gather(heads, maps, width):
    """[B, P, width] of all maps; in channels_last only the concatenation moves memory."""
    outputs = [head(each) for head, each in zip(heads, maps, strict=True)]
    return torch.cat([o.permute(0, 2, 3, 1).reshape(o.shape[0], -1, width) for o in outputs], 1)
