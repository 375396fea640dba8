"""The training loop: steps, the running record, evaluation, checkpoints and the way out."""

import csv
import math
import sys
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ssdkern import plots
from ssdkern.checkpoint import atomic_write, save_state, save_weights
from ssdkern.data import BatchKeys, TrainTransform, make_loader
from ssdkern.distributed import Group
from ssdkern.evaluate import evaluate
from ssdkern.graphs import tuned
from ssdkern.stepper import Stepper
from ssdkern.stop import StopSignal

_ENDLESS = 1 << 40  # epochs of the stream of batches; the run ends it
_READ_EVERY = 10  # steps between looks at the losses on a device that would have to wait
_SAVE_SECONDS = 300  # longest stretch of training without a checkpoint


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; the message names the step, the rate and the pictures."""


class Trainer:
    """One run of training.

    Args:
        model: an `ssdkern.SSD`, on its device.
        groups: parameter groups for SGD, each with its peak ``lr``.
        recipe: of `ssdkern.recipes`, with the caller's changes.
        train_set, eval_set: data sets; `eval_set` None: no evaluation.
        options: the command's settings, see `ssdkern.train`.
        processes: of `ssdkern.distributed.join`; each has a trainer of the same arguments.
    """

    def __init__(self, model, groups, recipe, train_set, eval_set, options, processes=None):
        self.model, self.recipe, self.options = model, recipe, options
        self.train_set, self.eval_set = train_set, eval_set
        self.processes = processes or Group()
        self.device = next(model.parameters()).device
        self.stepper = Stepper(model, groups, recipe, options, self.processes)
        self.optimizer, self.ema = self.stepper.optimizer, self.stepper.ema
        self.step, self.elapsed, self.best = 0, 0.0, -1.0
        self.rows = []
        self.images_per_step = options.batch_size * options.accumulate * self.processes.size
        self.steps = options.steps
        if options.epochs:
            self.steps = math.ceil(options.epochs * len(train_set) / self.images_per_step)
        self.output = Path(options.output)
        self._window = []
        self._clear()

    @property
    def progress(self):
        """How much of the run is done, 0 to 1."""
        if self.options.max_minutes:
            return min(self.elapsed / (60 * self.options.max_minutes), 1.0)
        return min(self.step / self.steps, 1.0)

    @property
    def epoch(self):
        """How many times the set has been seen."""
        return self.step * self.images_per_step // len(self.train_set)

    @property
    def averaged(self):
        """The model that is evaluated and saved."""
        return self.ema.module if self.ema else self.model

    def state(self):
        """Everything that `restore` needs to go on exactly, as tensors and plain values."""
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return {
            "step": self.step,
            "elapsed": self.elapsed,
            "best": self.best,
            "rows": self.rows,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "rng": torch.get_rng_state(),
            "cuda_rng": cuda,
        }

    def restore(self, state):
        """Take up a state; the rest of the run is what it would have been."""
        self.step, self.elapsed, self.best = state["step"], state["elapsed"], state["best"]
        self.rows = state["rows"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and self.device.type == "cuda":
            own = min(self.device.index, len(state["cuda_rng"]) - 1)  # once all GPUs' were saved
            torch.cuda.set_rng_state(state["cuda_rng"][own], self.device)

    def save(self):
        """Write ``state/last.pt``, ``weights/last.safetensors`` and ``results.csv``."""
        self._look()
        self._saved = self.elapsed
        if self.processes.rank:
            return
        self._save_weights("last")
        save_state(self.output / "state/last.pt", {**self.state(), "options": vars(self.options)})
        if self.rows:
            with atomic_write(self.output / "results.csv") as part, open(part, "w") as file:
                table = csv.DictWriter(file, self.rows[-1])
                table.writeheader()
                table.writerows(self.rows)

    def _save_weights(self, name):
        if self.processes.rank:
            return
        names, size = self.train_set.class_names, self.model.image_size
        score = self.rows[-1]["map50"] if self.rows else ""
        info = {"image_size": size, "step": self.step, "epoch": self.epoch, "map50": score}
        save_weights(self.output / f"weights/{name}.safetensors", self.averaged, names, **info)

    def run(self, on_step=None):
        """Train to the end of the budget.

        Args:
            on_step: called with this trainer after every step.

        Returns:
            int: 0, or 128 plus the number of the signal that ended the run early, saved.

        Raises:
            NonFiniteLossError: nothing was saved since the loss was last finite.
        """
        self._saved = self.elapsed
        self._mark = math.floor(10 * self.progress)
        loader, number = self._loader(), 0
        bar = tqdm(
            total=None if self.options.max_minutes else self.steps,
            initial=self.step,
            unit="step",
            dynamic_ncols=True,
            disable=self.options.quiet or self.processes.rank > 0,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )
        with StopSignal() as stop, bar, tuned():
            batches = iter(loader)
            self.model.train()
            while self.progress < 1:
                clock, before = time.perf_counter(), self.epoch
                batch = self._next(batches, stop)
                waited = time.perf_counter() - clock
                if number := self.processes.highest(stop.number):
                    break
                self._step(batch)
                self._count(clock)
                self.step += 1
                self._waited += waited
                self._steps += 1
                if self.device.type == "cpu" or self.step % _READ_EVERY == 0:
                    self._look()
                bar.update()
                bar.set_postfix_str(self._status(), refresh=False)
                if on_step:
                    on_step(self)
                if self._records(before) or self.elapsed - self._saved > _SAVE_SECONDS:
                    self._look()  # the wait may bring more to do
                    if self._records(before):
                        self._record(stop, bar, self._due(before) or self.progress >= 1)
                    else:
                        self.save()
        if number or self._saved < self.elapsed:
            self.save()
        return 128 + number if number else 0

    def _next(self, batches, stop):
        """The batches of a step, or None where a signal took the loader's processes too."""
        try:
            return list(islice(batches, self.options.accumulate))
        except RuntimeError:
            if stop.number:
                return None
            raise

    def rehearse(self, steps=2):
        """Take some steps, say how long one takes, and keep nothing."""
        batches = iter(self._loader())
        self.model.train()
        for _ in range(steps):
            batch = list(islice(batches, self.options.accumulate))
            clock = time.perf_counter()
            self._step(batch)
            self._look()
            print(f"a step of {self.images_per_step} images: {time.perf_counter() - clock:.2f} s")

    def _loader(self):
        recipe, options = self.recipe, self.options
        transform = TrainTransform(
            self.model.image_size,
            recipe.augment,
            expand=recipe.expand and recipe.augment == "ssd",
            max_expand=recipe.max_expand,
            min_scale=recipe.min_scale,
        )
        return make_loader(
            self.train_set,
            transform,
            options.batch_size,
            workers=options.workers,
            seed=options.seed,
            epochs=_ENDLESS,
            start_batch=self.step * options.accumulate,
            rank=self.processes.rank,
            world_size=self.processes.size,
            pin_memory=self.device.type == "cuda",
        )

    def _step(self, batches):
        losses, own = self.stepper(batches, self.recipe.factor(self.progress))
        self._window.append((self.step, losses, own))

    def _count(self, clock):
        """Adds the time since `clock` to that of training, which is the slowest process's."""
        spent = time.perf_counter() - clock
        self.elapsed = self.processes.highest(self.elapsed + spent)
        self._spent += spent

    def _look(self):
        """Read the losses of the last steps, which waits for the device: time of training."""
        if not self._window:
            return
        clock = time.perf_counter()
        steps, losses, own = zip(*self._window, strict=True)
        self._window = []
        values, shares = torch.stack(losses).cpu().numpy(), torch.stack(own).cpu().numpy()
        for step, value, share in zip(steps, values, shares, strict=True):
            if not np.isfinite(value).all():
                mine = "" if np.isfinite(share).all() else self._describe(step, share)
                found = [text for text in self.processes.gather(mine) if text]
                raise NonFiniteLossError("; ".join(found))
        self._sums += values.sum(0)
        self._read += len(values)
        self._count(clock)

    def _describe(self, step, value):
        options = self.options
        keys = BatchKeys(
            len(self.train_set),
            options.batch_size,
            options.seed,
            epochs=_ENDLESS,
            start_batch=step * options.accumulate,
            rank=self.processes.rank,
            world_size=self.processes.size,
        )
        ids = [
            str(self.train_set.annotation(index).image_id)
            for batch in islice(keys, options.accumulate)
            for _, index in batch
        ]
        rate = self.optimizer.param_groups[0]["lr"]
        where = f" of rank {self.processes.rank}" if self.processes.size > 1 else ""
        return (
            f"want a finite loss, got localization {value[0]:g} and classification {value[1]:g} "
            f"at step {step}, lr {rate:g}, on pictures {', '.join(ids)}{where}; a lower --lr or "
            f"--clip-grad may help; {self.output}/weights/last.safetensors is from before"
        )

    def _clear(self):
        self._sums, self._read, self._steps = np.zeros(2), 0, 0
        self._waited = self._spent = 0.0

    def _status(self):
        localization, classification = self._sums / max(self._read, 1)
        spent = max(self._spent, 1e-9)
        return (
            f"epoch {self.epoch + 1} {self.progress:.0%} loc {localization:.3f} "
            f"conf {classification:.3f} {self._steps * self.images_per_step / spent:.1f} img/s "
            f"data {self._waited / spent:.0%}"
        )

    def _due(self, before):
        """Whether to evaluate now, `before` being the epoch before this step."""
        if every := self.options.eval_every:
            return self.epoch // every > before // every
        return math.floor(10 * self.progress) > self._mark

    def _records(self, before):
        """Whether the record gets a row now, `before` being the epoch before this step."""
        return self.epoch > before or self._due(before) or self.progress >= 1

    def _record(self, stop, bar, due):
        """Add a row to the record, and evaluate if that is due."""
        localization, classification = (self._sums / max(self._read, 1)).tolist()
        spent = max(self._spent, 1e-9)
        score = None
        if due and self.eval_set is not None and not self.processes.highest(stop.number):
            # an evaluation that several share is not left by one
            with stop.interrupting() if self.processes.size == 1 else nullcontext():
                report = self.evaluate()
                score = self.processes.highest(float(report.map50) if report else -1.0)
        self._mark = math.floor(10 * self.progress)
        row = {
            "step": self.step,
            "epoch": self.epoch,
            "seconds": round(self.elapsed, 2),
            "lr": self.optimizer.param_groups[0]["lr"],
            "localization": round(localization, 5),
            "classification": round(classification, 5),
            "images_per_second": round(self._steps * self.images_per_step / spent, 2),
            "data_wait": round(self._waited / spent, 4),
            "map50": "" if score is None else round(score, 5),
        }
        self.rows.append(row)
        self._clear()
        if score is None:
            return
        bar.write(
            f"epoch {self.epoch:4d}  {self.elapsed / 60:5.1f} min  loss "
            f"{localization + classification:.3f}  mAP@0.5 {score:.3f}",
            file=sys.stdout,
        )
        if score >= self.best:
            self.best = score
            self._save_weights("best")
        self.save()

    def evaluate(self):
        """A Report of the averaged model on `eval_set`; None where rank is not 0."""
        self.processes.share_buffers(self.averaged)
        return evaluate(
            self.averaged,
            self.eval_set,
            batch_size=self.options.batch_size,
            workers=self.options.workers,
            backend=self.options.backend,
            class_names=self.train_set.class_names,
            processes=self.processes,
        )

    def finish(self):
        """Draw ``results.png`` where matplotlib is."""
        if self.rows and not self.processes.rank and plots.available():
            plots.plot_results(self.output / "results.csv", self.output / "results.png")
