"""Pictures in, final boxes out."""

import pytest
import torch

from bench.whole import Subject, seconds, time_whole
from ssdkern import detect


def agree(ours, theirs, exact):
    """The same scores in the same order; bfloat16 rounds otherwise in another graph."""
    for scores, count, other in zip(ours.scores, ours.count, theirs, strict=True):
        if exact:
            assert abs(int(count) - len(other["scores"])) <= 1
        most = min(int(count), len(other["scores"]))
        bound = 1e-3 if exact else 5e-2
        torch.testing.assert_close(scores[:most], other["scores"][:most], rtol=bound, atol=bound)


@pytest.mark.parametrize("library", ["native", "torchvision"])
def bench_inference(benchmark, device, model, batch, mode, library):
    subject = Subject(model, batch, device)
    ours, theirs = subject.ours.eval(), subject.theirs and subject.theirs.eval()
    if library == "torchvision" and theirs is None:
        pytest.skip(f"torchvision has no {model}")
    find = ours.detect
    if mode == "compiled":
        find = torch.compile(ours.detect, fullgraph=True)
        theirs = torch.compile(theirs) if theirs is not None else None

    def run_ours():
        with torch.no_grad(), subject.autocast():
            return find(subject.images)

    def run_theirs():
        with torch.no_grad(), subject.autocast():
            return theirs(subject.list)

    if theirs is not None:
        agree(run_ours(), run_theirs(), device.type == "cpu")
    phases, run = {}, run_theirs
    if library == "native":
        phases, run = _phases(subject), run_ours
    name = f"inference-{mode}-{model}-B{batch}"
    time_whole(benchmark, subject, run, name, library, phases, backward=False)


def _phases(subject):
    """Seconds of the network and of what follows it, each alone, eager."""
    ours = subject.ours
    with torch.no_grad(), subject.autocast():
        heads = ours.heads(subject.images)
        limits = {"score_threshold": ours.score_thresh, "iou_threshold": ours.nms_thresh}
        limits |= {"nms_top_k": ours.topk_candidates, "keep_top_k": ours.detections_per_img}
        limits |= {"max_log_scale": ours.max_log_scale, "clip": ours.clip}
        return {
            "network": seconds(lambda: ours.heads(subject.images), subject.device, 5),
            "detection": seconds(lambda: detect(*heads, ours.priors, **limits), subject.device, 5),
        }
