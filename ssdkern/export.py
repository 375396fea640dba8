"""A trained detector as a file that runs elsewhere: ``ssdkern export --weights FILE --output FILE``

A name that ends in ``.onnx`` makes a model that runs without torch, one in ``.pt2`` a program of
torch.export, which runs on the kernels of an installed ssdkern. Either takes any number of images.
"""

import argparse
import json
import math
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import library, nn

from ssdkern.checkpoint import atomic_write, load_model
from ssdkern.ops.decode_boxes import decode_boxes_torch
from ssdkern.ops.multiclass_nms import Detections, multiclass_nms_torch
from ssdkern.ops.nms import suppress
from ssdkern.ssd import ForExport

_OPSET = 18
_BATCH = {"images": {0: torch.export.Dim("batch", min=1)}}


@library.custom_op("ssdkern::suppress", mutates_args=())
def _suppress(
    boxes: torch.Tensor, alive: torch.Tensor, iou_threshold: float, most: int
) -> torch.Tensor:
    return suppress(boxes, alive, iou_threshold, most)


@_suppress.register_fake
def _(boxes, alive, iou_threshold, most):
    return torch.empty_like(alive)


def _suppress_onnx(boxes, alive, iou_threshold, most):
    from onnxscript import opset18 as op

    # the lists are in order: the score that ONNX sorts by is -1, -2, -3 and so on
    place = op.CumSum(op.CastLike(op.Or(alive, op.Not(alive)), boxes), op.Constant(value_int=1))
    order = op.Where(alive, op.Neg(place), op.Constant(value_float=-2e9))
    kept = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(order, op.Constant(value_ints=[1])),
        op.Constant(value_ints=[most]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[-1e9]),
    )  # [N, 3]: list, 0, box
    where = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)
    hits = op.CastLike(op.Gather(kept, op.Constant(value_int=0), axis=1), boxes)
    hits = op.GreaterOrEqual(hits, op.Constant(value_float=0.0))  # [N], all true
    return op.ScatterND(op.And(alive, op.Not(alive)), where, hits)


def _sort_onnx(x, stable=True, dim=0, descending=False):
    from onnxscript import opset18 as op

    # equal values keep their order in TopK
    return op.TopK(x, op.Shape(x, start=dim, end=dim + 1), axis=dim, largest=int(descending))


class _Onnx(nn.Module):
    """An SSD in plain operators, and suppression as one that ONNX has a name for."""

    def __init__(self, model, nms):
        super().__init__()
        self.model, self.nms = model, nms

    def forward(self, images):
        model = self.model
        logits, offsets = model.heads(images)
        bound = math.inf if model.max_log_scale is None else model.max_log_scale
        boxes = decode_boxes_torch(offsets.float(), model.priors, *model.variances, bound)
        boxes = boxes.clamp(0, 1) if model.clip else boxes
        scores = logits.float().softmax(dim=-1)
        if not self.nms:
            return boxes, scores
        limits = model.score_thresh, model.nms_thresh
        most = model.topk_candidates, model.detections_per_img
        return multiclass_nms_torch(boxes, scores, *limits, *most, suppress=_suppress)


def export_onnx(model, file, *, nms=False, **info):
    """Write a detector as an ONNX model, version 18 of the operators.

    Its input is ``images``, float32 [B, 3, S, S] in 0..1, RGB, with any B. Its outputs are
    ``boxes`` [B, P, 4] xyxy in fractions of the image and ``scores`` [B, P, C] after softmax, of
    every prior; with `nms` those of `ssdkern.Detections`.

    Args:
        model: an `ssdkern.SSD`; it is exported in eval mode and left as it was.
        file: the path to write to, atomically.
        nms: suppression is in the model too, by the operator NonMaxSuppression.
        info: values for the metadata of the file, as JSON.

    Raises:
        RuntimeError: onnx or onnxscript is not installed.
    """
    if missing := [name for name in ("onnx", "onnxscript") if not find_spec(name)]:
        raise RuntimeError(
            f"want onnx and onnxscript to export, got no {' nor '.join(missing)}; "
            "pip install 'ssdkern[export]'"
        )
    with _as_evaluated(model) as images:
        program = torch.onnx.export(
            _Onnx(model, nms).eval(),
            (images,),
            dynamo=True,
            opset_version=_OPSET,
            input_names=["images"],
            output_names=list(Detections._fields if nms else ("boxes", "scores")),
            dynamic_shapes=_BATCH,
            custom_translation_table={
                torch.ops.ssdkern.suppress.default: _suppress_onnx,
                torch.ops.aten.sort.stable: _sort_onnx,
            },
            verbose=False,
        )
    info = {"image_size": model.image_size, **info}
    program.model.metadata_props.update({name: json.dumps(info[name]) for name in info})
    with atomic_write(file) as part:
        program.save(part)


def export_program(model, file, *, nms=True, **info):
    """Write a detector as a program of torch.export, for ``torch.export.load(file).module()``.

    Args:
        model, file, info: as for `export_onnx`; the info is an extra file, ``ssdkern.json``.
        nms: `SSD.detect`, else `SSD.heads`. Input is as for `export_onnx`.
    """
    with _as_evaluated(model) as images:
        method = ForExport(model, "detect" if nms else "heads").eval()
        program = torch.export.export(method, (images,), dynamic_shapes=_BATCH)
    info = {"image_size": model.image_size, **info}
    with atomic_write(file) as part, open(part, "wb") as stream:
        torch.export.save(program, stream, extra_files={"ssdkern.json": json.dumps(info)})


@contextmanager
def _as_evaluated(model):
    """Yields images to trace with, the model being in eval mode."""
    training, size = model.training, model.image_size
    model.eval()
    try:
        with torch.no_grad():
            yield torch.rand(2, 3, size, size, device=model.mean.device)
    finally:
        model.train(training)


def parser():
    """The arguments of the command."""
    args = argparse.ArgumentParser(prog="ssdkern export", description=__doc__.split(":")[0])
    args.add_argument("--weights", required=True, help="checkpoint of ssdkern train")
    args.add_argument("--output", required=True, help="file to write, .onnx or .pt2")
    args.add_argument(
        "--nms",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="detections; without it boxes and scores (.onnx) or heads (.pt2) of every prior",
    )
    return args


def main(argv=None):
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    writers = {".onnx": export_onnx, ".pt2": export_program}
    try:
        write = writers.get(Path(args.output).suffix)
        if write is None:
            raise ValueError(f"want --output ending in .onnx or .pt2, got {args.output}")
        model, info = load_model(args.weights)
        write(model, args.output, nms=args.nms, class_names=info["class_names"])
    except (OSError, ValueError, RuntimeError) as error:
        print(f"ssdkern export: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
