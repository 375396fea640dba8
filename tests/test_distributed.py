"""Several processes do what one does, and one that fails ends all."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from distributed_worker import everything
from safetensors.torch import load_file

from ssdkern.data.loader import sample_order
from ssdkern.distributed import Group, Processes, join, own_cores
from ssdkern.train import settle

WORKER = str(Path(__file__).with_name("distributed_worker.py"))
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="this torch has no gloo"
)


def launch(job, output, size):
    """Runs a job of the worker on `size` processes; their exit codes, outputs and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(size):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, WORKER, job, str(output)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=env, **streams))
    texts = [process.communicate(timeout=600) for process in started]
    return [(p.returncode, *text) for p, text in zip(started, texts, strict=True)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    output = tmp_path_factory.mktemp("alone")
    everything(output, Group())
    return output


@pytest.fixture(scope="module", params=[2, 3])
def together(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("together")
    results = launch("everything", output, request.param)
    for code, _, errors in results:
        assert code == 0, errors
    return output, [text for _, text, _ in results]


def weights(output, name):
    return load_file(output / f"{name}/weights/last.safetensors")


@pytest.mark.parametrize("name", ["plain", "accumulated", "resumed"])
def test_several_processes_learn_what_one_does(alone, together, name):
    expected, found = weights(alone, "plain"), weights(together[0], name)
    assert expected.keys() == found.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)


def test_accumulated_batches_are_one_large(alone):
    expected, found = weights(alone, "plain"), weights(alone, "accumulated")
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)


def test_an_evaluation_is_shared_out(alone, together):
    expected, found = (json.loads((o / "report.json").read_text()) for o in (alone, together[0]))
    assert found["ids"] == expected["ids"] and len(found["ids"]) == 7
    assert found["map50"] == pytest.approx(expected["map50"], abs=1e-3)
    for one, other in zip(found["scores"], expected["scores"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_only_the_first_prints(together):
    first, *others = together[1]
    assert first.rstrip().endswith("done")
    assert not any(others)


def test_one_that_fails_ends_all_by_name(tmp_path):
    """Under torchrun itself; the operation that the others wait in would last half an hour."""
    order = sample_order(24, 0, 0)
    (tmp_path / "order.txt").write_text(" ".join(map(str, order)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    begin = time.monotonic()
    done = subprocess.run(
        [*command, WORKER, "broken", str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode != 0
    where = f"rank 1 of 2 on {socket.gethostname()}: ValueError: scene {order[7]} is broken"
    assert f"ssdkern: rank 0 of 2 on {socket.gethostname()} stops, for {where}" in done.stderr
    assert time.monotonic() - begin < 300


def test_a_loss_that_is_not_finite_names_the_rank(tmp_path):
    for code, _, errors in launch("infinite", tmp_path, 2):
        assert code == 1
        assert "want a finite loss" in errors and "of rank 1;" in errors
        assert "of rank 0" not in errors


def test_settings_of_several_processes(tmp_path):
    given = {"data": "scenes", "output": str(tmp_path), "model": "ssd_tiny", "device": "cpu"}
    options, recipe = settle({**given, "recipe": "voc07"}, processes=4)
    assert options.batch_size == 8 and recipe.lr == pytest.approx(1e-3)
    options, recipe = settle({**given, "recipe": "voc07", "batch_size": 32}, processes=4)
    assert recipe.lr == pytest.approx(4e-3)
    with pytest.raises(ValueError, match="want 4 processes, as the run had, got 2"):
        settle({"output": str(tmp_path)}, {"options": vars(options)}, processes=2)
    with pytest.raises(ValueError, match="want --device cuda with --sync-norms, got cpu"):
        settle({**given, "sync_norms": True})
    several = "want --device cuda, of which each of 4 processes takes its own, got cuda:0"
    with pytest.raises(ValueError, match=several):
        settle({**given, "device": "cuda:0"}, processes=4)
    assert settle({**given, "device": "cuda:0"})[0].device == "cuda:0"


@pytest.fixture
def third(monkeypatch):
    """The third of four processes, before it joins."""
    for name, value in (("RANK", 2), ("LOCAL_RANK", 2), ("WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(socket, "gethostname", lambda: "host")
    return Processes()


@pytest.mark.parametrize(("count", "index"), [(1, 0), (4, 2), (2, None), (0, None)])
def test_the_gpu_of_a_process(third, monkeypatch, count, index):
    """Its own of all, or the only one that it is shown."""
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    third.take_gpu()
    assert taken == ([] if index is None else [index])


def test_processes_that_share_a_gpu_are_named(third, monkeypatch):
    others = [("GPU-a", "rank 0 of 4 on host"), ("GPU-b", "rank 1 of 4 on host")]
    monkeypatch.setattr(third, "gather", lambda own: [*others, own])
    third.want_own_gpu("GPU-c")
    names = "rank 1 of 4 on host and rank 2 of 4 on host"
    with pytest.raises(ValueError, match=f"want a GPU for each process, got one for {names}"):
        third.want_own_gpu("GPU-b")


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert own_cores() == 12
    for processes, cores in ((4, 3), (5, 2), (16, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert own_cores() == cores


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join() as processes:
        assert type(processes) is Group and processes.size == 1
