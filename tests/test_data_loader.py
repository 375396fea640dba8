"""Batches: packed right, and the same whoever prepares them and wherever a run goes on."""

import numpy as np
import pytest
import torch

from ssdkern.data import (
    Batch,
    BatchKeys,
    EvalTransform,
    Sample,
    SyntheticScenes,
    TrainTransform,
    collate,
    make_loader,
    message_of,
)

SCENES = SyntheticScenes(10, (64, 80), seed=5)


def batches(**arguments):
    return list(make_loader(SCENES, TrainTransform(48), 4, seed=3, **arguments))


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype and torch.equal(x, y)


def test_collate_packs_the_ground_truth():
    image = torch.zeros(3, 5, 5, dtype=torch.uint8)
    items = [
        (image + n, torch.full((n, 4), float(n)), torch.full((n,), n, dtype=torch.int64))
        for n in (2, 0, 3)
    ]
    batch = collate(items)
    assert isinstance(batch, Batch)
    assert batch.images.shape == (3, 3, 5, 5) and batch.images.dtype == torch.uint8
    assert batch.gt_offsets.tolist() == [0, 2, 2, 5] and batch.gt_offsets.dtype == torch.int32
    assert batch.gt_labels.tolist() == [2, 2, 3, 3, 3] and batch.gt_labels.dtype == torch.int64
    assert batch.gt_boxes[:, 0].tolist() == [2, 2, 3, 3, 3]
    assert batch.gt_boxes.dtype == torch.float32
    nothing = collate(items[1:2])
    assert nothing.gt_boxes.shape == (0, 4) and nothing.gt_offsets.tolist() == [0, 0]


def test_the_number_of_workers_does_not_show():
    alone = batches(epochs=2)
    assert len(alone) == 5
    same(alone, batches(epochs=2))
    same(alone, batches(epochs=2, workers=2))
    assert not torch.equal(alone[0].images, batches(epoch=1)[0].images)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_where_it_stopped(workers):
    same(batches(epochs=3)[4:], batches(epochs=3, start_batch=4, workers=workers))


def test_epochs_differ_in_more_than_their_order():
    first, second = (batches(epoch=epoch, shuffle=False) for epoch in (0, 1))
    assert all(not torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))


def test_global_random_state_does_not_show():
    alone = batches()
    torch.manual_seed(99)
    np.random.seed(99)
    same(alone, batches())


def test_persistent_workers_take_the_next_epoch():
    loader = make_loader(SCENES, TrainTransform(48), 5, seed=3, workers=1)
    first = list(loader)
    loader.batch_sampler.set_epoch(1)
    second = list(loader)
    same(first, list(make_loader(SCENES, TrainTransform(48), 5, seed=3)))
    same(second, list(make_loader(SCENES, TrainTransform(48), 5, seed=3, epoch=1)))


def keys(*arguments, **named):
    sampler = BatchKeys(*arguments, **named)
    found = list(sampler)
    assert len(sampler) == len(found)
    return found


def test_every_epoch_gives_every_sample_once():
    stream = [key for batch in keys(10, 4, seed=1, epochs=6) for key in batch]
    assert len(stream) == 60
    assert sorted(stream) == [(epoch, index) for epoch in range(6) for index in range(10)]
    orders = [[i for e, i in stream if e == epoch] for epoch in range(6)]
    assert len({tuple(order) for order in orders}) == 6
    assert orders[2] != sorted(orders[2])


def test_epochs_taken_one_by_one_are_whole_batches_of_the_stream():
    stream = keys(10, 4, seed=1, epoch=2, epochs=2)
    assert keys(10, 4, seed=1, epoch=2) == stream[:2]


def test_a_set_smaller_than_a_batch():
    assert [len(batch) for batch in keys(3, 8, seed=1)] == [8]
    assert [len(batch) for batch in keys(3, 8, shuffle=False)] == [3]


def test_in_order():
    assert keys(5, 2, shuffle=False) == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)]]


def test_ranks_share_the_stream():
    whole = keys(20, 4, seed=1, epochs=3)
    for rank in range(3):
        own = keys(20, 4, seed=1, epochs=3, rank=rank, world_size=3)
        assert own == whole[rank::3][: len(own)] and len(own) == 5
    shares = [keys(7, 2, shuffle=False, rank=rank, world_size=2) for rank in range(2)]
    assert sorted(key for share in shares for batch in share for key in batch) == [
        (0, index) for index in range(7)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batch_size": 0},
            "want batch_size and epochs from 1 and start_batch from 0, got 0, 1, 0",
        ),
        ({"start_batch": -1}, "got 4, 1, -1"),
        ({"rank": 2, "world_size": 2}, "want rank below world_size, got 2 and 2"),
        ({"length": 0}, "want a set with pictures, got an empty one"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchKeys(**{"length": 10, "batch_size": 4, **arguments})


class Own:
    """A user's data set: all it needs is a length and samples."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        image = np.full((20, 30, 3), 10 * index, np.uint8)
        boxes = np.array([[0, 0, 15, 10]], np.float32)
        return Sample(boxes, np.array([1]), (20, 30), image)


def test_own_data_set_in_order():
    loader = make_loader(Own(), EvalTransform(8), 4, shuffle=False)
    assert [len(batch.images) for batch in loader] == [4, 2]
    images = torch.cat([batch.images for batch in loader])
    assert images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert next(iter(loader)).gt_boxes[0].tolist() == [0, 0, 0.5, 0.5]


class Damaged(SyntheticScenes):
    def __getitem__(self, index):
        raise ValueError("a.jpg: want a picture\nand more")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_says_the_same_from_a_worker(workers):
    loader = make_loader(Damaged(4, (48, 48)), EvalTransform(48), 2, workers=workers)
    with pytest.raises(ValueError, match="want a picture") as error:
        next(iter(loader))
    assert message_of(error.value) == "a.jpg: want a picture\nand more"
