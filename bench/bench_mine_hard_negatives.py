import torch

from bench.scenes import generator
from ssdkern import mine_hard_negatives


def bench_mine_hard_negatives(timed, device, batch=32, num_priors=8732):
    source = generator()
    loss = torch.rand(batch, num_priors, generator=source).to(device)
    positive = (torch.rand(batch, num_priors, generator=source) < 0.003).to(device)

    def double_sort():
        """What torchvision's SSD.compute_loss does."""
        negative = loss.masked_fill(positive, float("-inf"))
        rank = negative.sort(1, descending=True)[1].sort(1)[1]
        return rank < 3 * positive.sum(1, keepdim=True)

    timed(
        "mine_hard_negatives",
        "forward",
        f"B{batch}-P{num_priors}",
        ours=lambda backend: mine_hard_negatives(loss, positive, backend=backend),
        torchvision=double_sort,
        nbytes=loss.nbytes + 2 * positive.nbytes,
    )
