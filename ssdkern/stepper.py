"""One step of an optimiser: gradients of some batches on all processes, update, average."""

from contextlib import nullcontext

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ssdkern.graphs import CapturedBackward

_TRUTHS = 64  # boxes an image that the buffers of a captured step have room for


class _Loss(nn.Module):
    """`SSD.loss` as the forward of a module, which is what runs on several processes."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *batch, normalizer, backend):
        return self.model.loss(*batch, normalizer=normalizer, backend=backend)


def update_average(ema, model, decay):
    """Moves an average of weights that starts short and grows to `decay`.

    Unlike ``ema.update_parameters`` it never waits for a GPU.

    Args:
        ema: AveragedModel whose ``n_averaged`` lives on the CPU.
        model: what it averages; of its buffers, integers are copied.
        decay: the longest memory, in 0..1.
    """
    steps = int(ema.n_averaged)
    weight = 1 - min(decay, (1 + steps) / (10 + steps)) if steps else 1.0
    pairs = [
        pair
        for kind in ("parameters", "buffers")
        for pair in zip(getattr(ema.module, kind)(), getattr(model, kind)(), strict=True)
    ]
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    others = [pair for pair in pairs if not pair[0].is_floating_point()]
    with torch.no_grad():
        torch._foreach_lerp_(*map(list, zip(*floats, strict=True)), weight)
        for averaged, current in others:
            averaged.copy_(current)
    ema.n_averaged += 1


class Stepper:
    """What changes the weights of a model.

    Gradients are those of one batch of all images of a step, whatever number of batches and
    processes it is spread over: both terms of the loss are divided by the positives of all. Batch
    normalisation is of each batch of each process.

    Args:
        model: an `ssdkern.SSD`, on its device.
        groups: parameter groups, each with its peak ``lr``.
        recipe: of `ssdkern.recipes`.
        options: the command's settings, see `ssdkern.train`.
        processes: of `ssdkern.distributed.join`.
    """

    def __init__(self, model, groups, recipe, options, processes):
        self.model, self.recipe, self.options, self.processes = model, recipe, options, processes
        self.device = next(model.parameters()).device
        fused = {"fused": self.device.type in ("cpu", "cuda")}
        if recipe.optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(groups, **fused)
        else:
            self.optimizer = torch.optim.SGD(groups, momentum=0.9, **fused)
        for group in self.optimizer.param_groups:
            group["peak"] = group["lr"]
        self.ema = AveragedModel(model, use_buffers=True) if recipe.ema else None
        loss = _Loss(model)
        if options.compile:
            loss.compile(fullgraph=True)
        self._loss = loss if options.cuda_graph else processes.wrap(loss)
        self._captured = None

    def __call__(self, batches, factor):
        """Change the weights by the gradients of some batches.

        Args:
            batches: this process's, each as of `ssdkern.data.make_loader`.
            factor: of the peak learning rates.

        Returns:
            tuple[Tensor[2], Tensor[2]]: localization and classification of all processes, and this
            process's share of them. Reading them waits for the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        if self.processes.size == len(batches) == 1:
            losses = own = self._backward(batches[0], None)[:2]
        else:
            sums = 0
            for index, batch in enumerate(batches, 1):
                last = index == len(batches) or self.processes.size == 1
                with nullcontext() if last else self._loss.no_sync():
                    sums = sums + self._backward(batch, 1.0)
            losses, own = self._divide(sums)
        if self.recipe.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self._captured is None)
        if self.ema:
            update_average(self.ema, self.model, self.recipe.ema)
        return losses, own

    def _backward(self, batch, normalizer):
        """Adds to the gradients; Tensor[3] of both terms and the number of positives."""
        amp = self.options.amp == "bf16"
        if self.options.cuda_graph:
            if self._captured is None:
                self._captured = CapturedBackward(
                    self.model,
                    batch,
                    normalizer,
                    loss=self._loss,
                    autocast=torch.bfloat16 if amp else None,
                    backend=self.options.backend,
                    capacity=_TRUTHS * len(batch.images),
                )
            return self._captured(batch)
        images, *truth = (part.to(self.device, non_blocking=True) for part in batch)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=amp):
            loss = self._loss(images, *truth, normalizer=normalizer, backend=self.options.backend)
        (loss.localization + loss.classification).backward()
        return torch.stack([each.detach().float() for each in loss])

    def _divide(self, own):
        """From sums and their mean gradients to those over the positives of all processes."""
        everyone = self.processes.total_(own.clone())
        count = everyone[2].clamp(min=1)
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        torch._foreach_mul_(grads, self.processes.size / count)
        return everyone[:2] / count, own[:2] / count
