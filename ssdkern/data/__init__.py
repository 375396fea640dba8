"""Data: readers, checks, augmentation, synthetic scenes and the loader."""

from ssdkern.data.check import check, damaged_pictures, summarize
from ssdkern.data.export import write_coco, write_voc, write_yolo
from ssdkern.data.folder import open_dataset
from ssdkern.data.images import open_image
from ssdkern.data.loader import Batch, BatchKeys, collate, make_loader, message_of, sample_order
from ssdkern.data.samples import DetectionDataset, Problem, Sample
from ssdkern.data.synthetic import SyntheticScenes
from ssdkern.data.transforms import EvalTransform, TrainTransform

__all__ = [
    "Batch",
    "BatchKeys",
    "DetectionDataset",
    "EvalTransform",
    "Problem",
    "Sample",
    "SyntheticScenes",
    "TrainTransform",
    "check",
    "collate",
    "damaged_pictures",
    "make_loader",
    "message_of",
    "open_dataset",
    "open_image",
    "sample_order",
    "summarize",
    "write_coco",
    "write_voc",
    "write_yolo",
]
