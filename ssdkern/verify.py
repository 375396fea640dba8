"""Runs every op on this machine against its float64 reference and the Caffe original's outputs."""

from importlib.resources import files

import numpy as np
import torch

from ssdkern import ops, priors

VALUE_TOLERANCE = 2e-6  # relative, float32: DESIGN's contract for values through exp and log
OPS = (
    "box_iou",
    "match_priors",
    "encode_boxes",
    "decode_boxes",
    "mine_hard_negatives",
    "multibox_loss",
    "nms",
    "batched_nms",
    "multiclass_nms",
    "detect",
)


def random_boxes(generator, *shape, smallest=0.02, largest=0.6):
    """Boxes [*shape, 4] with centres in the unit square, xyxy."""
    centre = torch.rand(*shape, 2, generator=generator)
    spread = torch.rand(*shape, 2, generator=generator)
    half = (smallest + (largest - smallest) * spread**2) / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def inputs(op, generator, batch=2, classes=6):
    """Positional and keyword arguments of one call of `op`, float32, on the CPU."""
    anchors = priors.make_priors("ssd300-voc")
    anchors = anchors[torch.randperm(len(anchors), generator=generator)[:700].sort().values]
    counts = torch.randint(1, 12, (batch,), generator=generator)
    offsets = torch.cat((torch.zeros(1), counts.cumsum(0))).int()
    truth = random_boxes(generator, int(offsets[-1])).clamp(0, 1)
    labels = torch.randint(1, classes, (len(truth),), generator=generator)
    logits = 2 * torch.randn(batch, len(anchors), classes, generator=generator)
    deltas = torch.randn(batch, len(anchors), 4, generator=generator)
    boxes = random_boxes(generator, 500)
    scores = torch.rand(500, generator=generator)
    return {
        "box_iou": ((boxes[:90], boxes), {}),
        "match_priors": ((anchors, truth, offsets), {}),
        "encode_boxes": ((boxes, random_boxes(generator, 500, smallest=0.3)), {}),
        "decode_boxes": ((deltas, anchors), {}),
        "mine_hard_negatives": (
            (
                torch.rand(batch, 700, generator=generator),
                torch.rand(batch, 700, generator=generator) < 0.02,
            ),
            {},
        ),
        "multibox_loss": ((logits, deltas, anchors, truth, labels, offsets), {}),
        "nms": ((boxes, scores, 0.45), {}),
        "batched_nms": (
            (boxes, scores, torch.randint(0, classes, (500,), generator=generator), 0.45),
            {},
        ),
        "multiclass_nms": (
            (random_boxes(generator, batch, 500), logits[:, :500].softmax(-1)),
            {"keep_top_k": 50},
        ),
        "detect": ((logits, deltas, anchors), {"keep_top_k": 50}),
    }[op]


def tensors(result):
    return result if isinstance(result, tuple) else (result,)


def call(op, backend, args, kwargs, dtype, device):
    """The outputs of one call, and for the loss its gradients too, on the CPU."""
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
    args = [
        a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args
    ]
    if op != "multibox_loss":
        return [t.cpu() for t in tensors(getattr(ops, op)(*args, backend=backend, **kwargs))]
    args[:2] = [a.requires_grad_() for a in args[:2]]
    loss = ops.multibox_loss(*args, backend=backend, **kwargs)
    gradients = torch.autograd.grad(loss.localization + loss.classification, args[:2])
    return [t.detach().cpu() for t in (*loss, *gradients)]


def difference(result, exact, reference):
    """Largest relative error of the values against float64, and how many integers differ."""
    error, wrong = 0.0, 0
    for got, double, single in zip(result, exact, reference, strict=True):
        if got.is_floating_point():
            scale = double.abs().clamp(min=1.0)
            off = ((got.double() - double).abs() / scale).nan_to_num(torch.inf)  # no op gives NaN
            error = max(error, float(off.max()))
        else:
            wrong += int((got != single).sum()) if got.shape == single.shape else got.numel()
    return error, wrong


def verify(op, backend, device, rounds=5):
    """Returns (largest relative error, integers that differ) over random inputs."""
    worst, wrong = 0.0, 0
    for seed in range(rounds):
        args, kwargs = inputs(op, torch.Generator().manual_seed(seed))
        result = call(op, backend, args, kwargs, torch.float32, device)
        reference = call(op, "torch", args, kwargs, torch.float32, "cpu")
        exact = call(op, "torch", args, kwargs, torch.float64, "cpu")
        error, differing = difference(result, exact, reference)
        worst, wrong = max(worst, error), wrong + differing
    return worst, wrong


def golden(name):
    """The Caffe original's inputs and outputs of one routine, by case."""
    with files("ssdkern.golden").joinpath(f"{name}.npz").open("rb") as file:
        arrays = {key: torch.from_numpy(value) for key, value in np.load(file).items()}
    cases = {}
    for key, value in arrays.items():
        case, _, field = key.rpartition("/")
        cases.setdefault(case, {})[field] = value
    return cases


def golden_match(case, run):
    got = run("match_priors", case["priors"], case["gt_boxes"], case["gt_offsets"])
    start = case["gt_offsets"][:-1, None]
    return int((torch.where(got >= 0, got - start, got) != case["matched"]).sum())


def golden_nms(case, run):
    score_threshold, iou_threshold, eta, top_k = case["params"].tolist()
    if eta < 1:  # a rule that only the original has
        return 0
    order = case["scores"].argsort(descending=True)
    order = order[case["scores"][order] > score_threshold]
    order = order[: int(top_k)] if top_k >= 0 else order
    kept = order[run("nms", case["boxes"][order], case["scores"][order], iou_threshold)]
    return 0 if torch.equal(kept, case["keep"].long()) else len(kept)


def golden_code(case, run):
    encoded = run("encode_boxes", case["gt_boxes"], case["priors"])
    decoded = run("decode_boxes", case["offsets"], case["priors"])
    pairs = ((encoded, case["encoded"]), (decoded, case["decoded"]))
    return sum(
        int((~((got - want).abs() <= 1e-5 * want.abs().clamp(min=1))).sum()) for got, want in pairs
    )


def golden_detect(case, run):
    """Rows that only one side has, less those that a score next to the threshold explains."""
    heads = case["logits"][None], case["offsets"][None], case["priors"]
    _, _, labels, prior, count = run("detect", *heads, keep_top_k=int(case["keep_top_k"]))
    ours = set(zip(labels[0, :count].tolist(), prior[0, :count].tolist(), strict=True))
    theirs = set(zip(case["labels"].tolist(), case["prior_index"].tolist(), strict=True))
    return max(len(ours ^ theirs) - len(theirs) // 50, 0)


GOLDEN = {
    "match_priors": ("match", golden_match),
    "encode_boxes": ("code", golden_code),
    "nms": ("nms", golden_nms),
    "detect": ("detect", golden_detect),
}


def verify_golden(op, backend, device):
    """How many outputs differ from the Caffe original's."""

    def run(name, *args, **kwargs):
        tensors = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
        result = getattr(ops, name)(*tensors, backend=backend, **kwargs)
        return tuple(t.cpu() for t in result) if isinstance(result, tuple) else result.cpu()

    name, check = GOLDEN[op]
    return sum(check(case, run) for case in golden(name).values())
