"""The ops of SSD. Each module holds one: what it does, its reference, and its way to a kernel."""

from ssdkern.ops.batched_nms import batched_nms
from ssdkern.ops.box_iou import box_iou
from ssdkern.ops.boxes import (
    box_area,
    box_convert,
    clip_boxes_to_image,
    generalized_box_iou,
    remove_small_boxes,
)
from ssdkern.ops.decode_boxes import decode_boxes
from ssdkern.ops.detect import detect
from ssdkern.ops.encode_boxes import encode_boxes
from ssdkern.ops.match_priors import match_priors
from ssdkern.ops.mine_hard_negatives import mine_hard_negatives
from ssdkern.ops.multibox_loss import MultiboxLoss, multibox_loss
from ssdkern.ops.multiclass_nms import Detections, multiclass_nms
from ssdkern.ops.nms import nms

__all__ = [
    "Detections",
    "MultiboxLoss",
    "batched_nms",
    "box_area",
    "box_convert",
    "box_iou",
    "clip_boxes_to_image",
    "decode_boxes",
    "detect",
    "encode_boxes",
    "generalized_box_iou",
    "match_priors",
    "mine_hard_negatives",
    "multibox_loss",
    "multiclass_nms",
    "nms",
    "remove_small_boxes",
]
