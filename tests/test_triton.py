"""Every Triton kernel compiles for GPUs that are not there, unfused where IoU is compared."""

import re
from pathlib import Path

import pytest
import torch

from ssdkern._backend import INTERPRETED, why_not

triton = pytest.importorskip("triton")

DISABLED = why_not("box_iou", "triton", "cuda")
compiled = pytest.mark.skipif(
    INTERPRETED or DISABLED is not None, reason=DISABLED or "TRITON_INTERPRET=1 compiles nothing"
)
EXACT = {
    "_box_iou_kernel",
    "_match_priors_kernel",
    "claim_priors_kernel",
    "_nms_kernel",
    "candidates_kernel",
    "_multiclass_nms_kernel",
}


def launch_all(P=8732, C=81, B=32, T=3200, N=8732):
    """Calls every launcher at the size of SSD300 on COCO."""
    from ssdkern.kernels.box_iou import box_iou_backward_triton, box_iou_triton
    from ssdkern.kernels.decode_boxes import decode_boxes_backward_triton, decode_boxes_triton
    from ssdkern.kernels.detect import detect_triton
    from ssdkern.kernels.encode_boxes import encode_boxes_backward_triton, encode_boxes_triton
    from ssdkern.kernels.match_priors import match_priors_triton
    from ssdkern.kernels.mine_hard_negatives import mine_hard_negatives_triton
    from ssdkern.kernels.multibox_loss import multibox_loss_backward_triton, multibox_loss_triton
    from ssdkern.kernels.multiclass_nms import multiclass_nms_triton
    from ssdkern.kernels.nms import padded_nms_triton

    priors, truth, variances = torch.empty(P, 4), torch.empty(T, 4), (0.1, 0.2)
    logits, offsets = torch.empty(B, P, C), torch.empty(B, P, 4)
    labels, gt_offsets = torch.ones(T).long(), torch.zeros(B + 1).int()
    iou = box_iou_triton(truth[None], priors[None])
    box_iou_backward_triton(iou, truth[None], priors[None])
    encoded = encode_boxes_triton(offsets, priors, *variances)
    encode_boxes_backward_triton(offsets, encoded, priors, *variances)
    decode_boxes_triton(offsets, priors, *variances, 4.0)
    decode_boxes_backward_triton(offsets, offsets, priors, *variances, 4.0)
    match_priors_triton(priors, truth, gt_offsets, 0.5, False)
    matched = match_priors_triton(priors, truth, gt_offsets, 0.5, True)
    mine_hard_negatives_triton(torch.empty(B, P), torch.zeros(B, P).bool(), 3.0)
    inputs = logits, offsets, priors, truth, labels, matched
    localization, classification, _, *kept = multibox_loss_triton(*inputs, 3.0, *variances)
    multibox_loss_backward_triton(localization, classification, *inputs, *kept, *variances)
    padded_nms_triton(torch.empty(N, 4), torch.empty(N), torch.zeros(N).long(), 0.5)
    multiclass_nms_triton(offsets, logits, 0.01, 0.45, 400, 200)
    detect_triton(logits, offsets, priors, 0.01, 0.45, 400, 200, *variances, 4.0, False)


@compiled
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_compiles_ahead_of_time(target, monkeypatch, capsys):
    """For GPUs that need not be there; prints registers, shared memory and spills."""
    from triton_ahead import compile_launch, record_launches, usage

    launches = record_launches(monkeypatch)
    launch_all()
    rows, names = [], set()
    for launch in launches:
        binary = compile_launch(launch, target)
        registers, shared, spills = usage(binary)
        name = launch[0].__name__
        names.add(name)
        rows.append(f"{name:31} {target:7} {registers:9} {shared:8} {spills:8}")
        assert spills <= 64, rows[-1]
        if name in EXACT and target != "gfx942":
            ptx = binary.asm["ptx"].split(".section")[0]
            assert "div.full" not in ptx and "div.approx" not in ptx, name
            multiplies = re.findall(r"\b(?:mul|add|sub)\.(?!rn|wide|lo|hi|s|u|b)\S+", ptx)
            assert not multiplies, f"{name} may fuse {set(multiplies)}"
    with capsys.disabled():
        print(f"\n{'kernel':31} {'target':7} registers   shared   spills")
        print("\n".join(rows))
    sources = [path.read_text() for path in kernel_files()]
    written = {name for text in sources for name in re.findall(r"def (\w+_kernel)\(", text)}
    assert written == names, f"not launched: {written - names}"


@compiled
def test_counts_compile_nothing_anew(monkeypatch):
    """How many truths and boxes there are changes with every batch."""
    from triton_ahead import record_launches

    def variants(**counts):
        launches.clear()
        launch_all(**counts)
        return [
            (kernel.__name__, options, *map(_kind, kernel.params, arguments.values()))
            for kernel, arguments, options in launches
        ]

    launches = record_launches(monkeypatch)
    assert variants(T=3200, N=8752) == variants(T=3111, N=9001) == variants(T=1, N=700)


def _kind(parameter, value):
    """What Triton compiles for, of an argument."""
    if isinstance(value, torch.Tensor):
        return value.dtype
    if type(value) is not int or parameter.is_constexpr:
        return value
    if parameter.do_not_specialize:
        return "int"
    return value if value == 1 else value % 16 == 0 and not parameter.do_not_specialize_on_alignment


def kernel_files():
    import ssdkern.kernels

    return sorted(Path(ssdkern.kernels.__file__).parent.glob("*.py"))
