"""Batches whose content depends on (seed, epoch, index) alone, not on who prepares them."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssdkern.data.samples import Sample
from ssdkern.data.transforms import Item


class Batch(NamedTuple):
    """Pictures and packed ground truth: image b owns rows gt_offsets[b]:gt_offsets[b + 1]."""

    images: Tensor  # uint8 [B, 3, S, S]
    gt_boxes: Tensor  # float32 [T, 4], xyxy in parts of the picture
    gt_labels: Tensor  # int64 [T]
    gt_offsets: Tensor  # int32 [B + 1]


def collate(items: Sequence[Item]) -> Batch:
    """Stack the pictures and pack the boxes of what a transform returns."""
    images, boxes, labels = zip(*items, strict=True)
    counts = torch.tensor([0] + [len(rows) for rows in labels])
    return Batch(
        torch.stack(images),
        torch.cat(boxes),
        torch.cat(labels),
        counts.cumsum(0).to(torch.int32),
    )


def sample_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, int64 [length]."""
    return np.random.default_rng((seed, epoch)).permutation(length)


class BatchKeys(Sampler):
    """For every batch, its (epoch, index) keys.

    Shuffled, it is one endless stream of epochs cut into batches: nothing is dropped at the end
    of an epoch, and workers do not pause there. In order, it is the set once, and the last batch
    may be smaller.

    Args:
        epoch: the first epoch, ``epochs`` how many; batches are ``epochs * length // (batch_size
            * world_size)``, at least one.
        start_batch: batches of this rank to leave out, to go on where a run stopped.
        rank, world_size: this process takes every ``world_size``-th batch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        epochs: int = 1,
        start_batch: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size < 1 or epochs < 1 or start_batch < 0:
            raise ValueError(
                f"want batch_size and epochs from 1 and start_batch from 0, "
                f"got {batch_size}, {epochs}, {start_batch}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"want rank below world_size, got {rank} and {world_size}")
        if length < 1:
            raise ValueError("want a set with pictures, got an empty one")
        self.length, self.batch_size, self.seed, self.shuffle = length, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.set_epoch(epoch, epochs, start_batch)

    def set_epoch(self, epoch: int, epochs: int = 1, start_batch: int = 0) -> None:
        """What the next pass over the loader gives."""
        self.epoch, self.epochs, self.start_batch = epoch, epochs, start_batch

    def _total(self) -> int:
        if self.shuffle:
            return max(1, self.epochs * self.length // (self.batch_size * self.world_size))
        batches = -(-self.length // self.batch_size)
        return len(range(self.rank, batches, self.world_size))

    def __len__(self) -> int:
        return max(0, self._total() - self.start_batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, np.ndarray] = {}
        for batch in range(self.start_batch, self._total()):
            first = (batch * self.world_size + self.rank) * self.batch_size
            keys = []
            for position in range(first, first + self.batch_size):
                epoch, place = divmod(position, self.length)
                epoch += self.epoch
                if not self.shuffle:
                    if position < self.length:
                        keys.append((self.epoch, position))
                    continue
                if epoch not in orders:
                    orders = {e: order for e, order in orders.items() if e == epoch - 1}
                    orders[epoch] = sample_order(self.length, self.seed, epoch)
                keys.append((epoch, int(orders[epoch][place])))
            yield keys


class Keyed(Dataset):
    """The transformed samples of a set, each with the generator of its (seed, epoch, index)."""

    def __init__(
        self, dataset, transform: Callable[[Sample, np.random.Generator], Item], seed: int
    ):
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        return self.transform(self.dataset[index], np.random.default_rng((self.seed, epoch, index)))


def message_of(error: Exception) -> str:
    """What an error says, without the traceback that a loader's process puts before it."""
    return str(error).rpartition("\nValueError: ")[2].rstrip()


def make_loader(
    dataset,
    transform: Callable[[Sample, np.random.Generator], Item],
    batch_size: int,
    *,
    workers: int = 0,
    seed: int = 0,
    epoch: int = 0,
    epochs: int = 1,
    start_batch: int = 0,
    shuffle: bool = True,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool | None = None,
) -> DataLoader:
    """A loader of `Batch`, the same whatever the number of workers.

    Args:
        dataset: anything with a length that gives a `Sample` by index.
        transform: `TrainTransform`, `EvalTransform` or the like.
        workers: processes that prepare batches, each on one thread; 0 works in this process. They
            live until the loader does.
        seed, epoch, epochs, start_batch, shuffle, rank, world_size: see `BatchKeys`, which is the
            loader's ``batch_sampler``; its ``set_epoch`` prepares another pass.
        pin_memory: None: where CUDA is.
    """
    keys = BatchKeys(
        len(dataset), batch_size, seed, epoch, epochs, start_batch, shuffle, rank, world_size
    )
    return DataLoader(
        Keyed(dataset, transform, seed),
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        persistent_workers=workers > 0,
    )
