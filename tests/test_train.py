"""Training: the same every time, resumed or not, and it never saves what is broken."""

import csv
import math
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel

from ssdkern.checkpoint import load_state
from ssdkern.data import SyntheticScenes
from ssdkern.recipes import RECIPES
from ssdkern.stepper import update_average
from ssdkern.train import fit, main, parser, settle
from ssdkern.trainer import NonFiniteLossError, Trainer


class Scenes(SyntheticScenes):
    """A set small enough that 50 steps pass several epochs."""

    def __init__(self, count=60, seed=0):
        super().__init__(count, (40, 40), seed, num_classes=3, min_scale=0.2)


def options(output, state=None, **more):
    given = {"data": "scenes", "model": "ssd_tiny", "image_size": 40, "batch_size": 4}
    given |= {"steps": 50, "quiet": True, "workers": 0, "device": "cpu"}
    given |= {"output": str(output), **more}
    return settle(given, state)


def train(output, state=None, on_step=None, eval_set=None, scenes=None, **more):
    settings = options(output, state, **more)
    return fit(*settings, scenes or Scenes(), eval_set, state, on_step)


def weights(output, name="last"):
    return load_file(output / f"weights/{name}.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    code, _ = train(output, eval_set=Scenes(8, seed=1))
    assert code == 0
    return output


def test_two_runs_are_identical_whatever_the_workers(whole, tmp_path):
    train(tmp_path, workers=2)
    assert_same(weights(whole), weights(tmp_path))


def test_another_seed_is_another_run(whole, tmp_path):
    train(tmp_path, seed=1)
    assert not torch.equal(weights(whole)["conf.0.weight"], weights(tmp_path)["conf.0.weight"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_is_identical(whole, tmp_path, number):
    def kill(trainer):
        if trainer.step == 25:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    code, trainer = train(tmp_path, on_step=kill)
    assert code == 128 + number and trainer.step == 25
    assert signal.getsignal(number) is before
    torch.manual_seed(12345)  # what happened meanwhile does not matter
    state = torch.load(tmp_path / "state/last.pt", weights_only=True)
    code, trainer = train(tmp_path, state)
    assert code == 0 and trainer.step == 50
    assert_same(weights(whole), weights(tmp_path))


def test_accumulation_resumes_too(tmp_path):
    def stop(trainer):
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    more = {"steps": 6, "accumulate": 2, "batch_size": 2}
    train(tmp_path / "a", **more)
    train(tmp_path / "b", on_step=stop, **more)
    state = torch.load(tmp_path / "b/state/last.pt", weights_only=True)
    train(tmp_path / "b", state, **more)
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_the_record_of_a_run(whole):
    with open(whole / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["step"]) == 50 and int(rows[-1]["epoch"]) == 3
    assert float(rows[-1]["classification"]) < float(rows[0]["classification"])
    assert sum(row["map50"] != "" for row in rows) == 10
    assert all(0 <= float(row["data_wait"]) <= 1 for row in rows)
    text = (whole / "args.yaml").read_text()
    assert "batch_size: 4" in text and "recipe: small" in text
    assert weights(whole, "best").keys() == weights(whole).keys()


def test_a_loss_that_is_not_finite_stops_and_names_the_pictures(tmp_path):
    def poison(trainer):
        if trainer.step == 4:
            trainer.save()
            with torch.no_grad():
                trainer.model.conf[0].bias.fill_(float("inf"))

    with pytest.raises(NonFiniteLossError, match=r"at step 4, lr 0\.\d+, on pictures \d+, \d+"):
        train(tmp_path, on_step=poison)
    kept = weights(tmp_path)
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_the_named_pictures_are_those_of_the_step(tmp_path):
    seen = []

    class Watched(Scenes):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    def poison(trainer):
        if trainer.step == 3:
            seen.clear()
            with torch.no_grad():
                trainer.model.conf[0].bias.fill_(float("inf"))

    with pytest.raises(NonFiniteLossError) as error:
        train(tmp_path, scenes=Watched(), on_step=poison)
    named = str(error.value).split("on pictures ")[1].split(";")[0]
    assert named.split(", ") == [str(index) for index in seen[:4]]


def test_a_budget_of_minutes_anneals_to_the_end(tmp_path):
    rates = []
    code, trainer = train(
        tmp_path,
        steps=None,
        max_minutes=0.05,
        on_step=lambda t: rates.append(t.optimizer.param_groups[0]["lr"]),
    )
    assert code == 0 and trainer.progress == 1.0
    assert 3 <= trainer.elapsed < 6
    assert max(rates) > 0.5 * trainer.recipe.lr and rates[-1] < 0.1 * trainer.recipe.lr


@pytest.mark.parametrize("every", [1, 1000])
def test_waits_for_the_device_are_time_of_training(tmp_path, monkeypatch, every):
    """Looked at after every step, or like a GPU after many, here where a row is due."""
    now, step = [0.0], Trainer._step

    class Late(torch.Tensor):
        def cpu(self):
            now[0] += 1
            return self.as_subclass(torch.Tensor)

    def late(trainer, batches):
        step(trainer, batches)
        number, *losses = trainer._window[-1]
        trainer._window[-1] = (number, *(each.as_subclass(Late) for each in losses))
        trainer.device = torch.device("cpu" if every == 1 else "cuda")

    monkeypatch.setattr(Trainer, "_step", late)
    monkeypatch.setattr("ssdkern.trainer.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr("ssdkern.trainer._READ_EVERY", every)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    _, trainer = train(tmp_path, steps=20, augment="none")
    looks = 20 if every == 1 else len(trainer.rows)
    assert trainer.elapsed == now[0] == 2 * looks
    # of two steps, with a look at both or at the second
    assert trainer.rows[0]["images_per_second"] == (2 if every == 1 else 4)


def test_schedules_follow_the_paper():
    recipe = RECIPES["voc0712-star"]
    assert recipe.steps == 120_000 and recipe.batch_size == 32
    rates = [recipe.lr * recipe.factor(step / recipe.steps) for step in (0, 79_999, 80_000, 1e5)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])
    assert RECIPES["coco-star"].steps == 400_000 and RECIPES["coco-star"].priors == "coco"
    assert not RECIPES["voc0712"].expand and RECIPES["voc0712-star"].expand
    small = RECIPES["small"]
    assert small.factor(0) == 0 and small.factor(small.warmup) == 1
    assert small.factor(1) == pytest.approx(0, abs=1e-9)


def test_the_rate_follows_the_batch(tmp_path):
    _, recipe = options(tmp_path, recipe="voc07", batch_size=8)
    assert recipe.lr == pytest.approx(1e-3 / 4)
    _, recipe = options(tmp_path, recipe="voc07", batch_size=8, accumulate=4)
    assert recipe.lr == pytest.approx(1e-3)
    _, recipe = options(tmp_path, recipe="voc07", batch_size=8, lr=0.5)
    assert recipe.lr == 0.5


def test_ema_against_its_formula():
    model = torch.nn.BatchNorm1d(1)
    ema, value = AveragedModel(model, use_buffers=True), 0.0
    for step in range(40):
        with torch.no_grad():
            model.weight.fill_(step)
            model.running_mean.fill_(2 * step)
            model.num_batches_tracked.fill_(step)
        update_average(ema, model, 0.9)
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0
        value = decay * value + (1 - decay) * step
    assert ema.module.weight.item() == pytest.approx(value, rel=1e-5)
    assert ema.module.running_mean.item() == pytest.approx(2 * value, rel=1e-5)
    assert ema.module.num_batches_tracked == 39 and ema.n_averaged == 40


def test_resuming_another_run_is_refused(whole, tmp_path):
    state = torch.load(whole / "state/last.pt", weights_only=True)
    with pytest.raises(ValueError, match="want --batch-size 4 as the run had, got 8"):
        settle({"output": str(whole), "batch_size": 8}, state)
    settings, _ = settle({"output": str(whole), "steps": 80}, state)
    assert settings.steps == 80 and settings.model == "ssd_tiny"


def test_a_run_of_a_gpu_goes_on_without(tmp_path):
    """What makes a step fast but not another one is given up or taken up on the way."""
    given = parser().parse_args(["--output", str(tmp_path), "--data", "scenes", "--cuda-graph"])
    settings, _ = settle({**vars(given), "compile": True, "device": "cuda", "backend": "triton"})
    state = {"options": vars(settings)}
    with pytest.raises(ValueError, match="want --device cuda with --cuda-graph, got cpu"):
        settle({"output": str(tmp_path), "device": "cpu"}, state)
    words = ["--output", str(tmp_path), "--device", "cpu", "--no-cuda-graph", "--no-compile"]
    given = vars(parser().parse_args([*words, "--backend", "torch"]))
    settings, _ = settle(given, state)
    assert not settings.cuda_graph and not settings.compile and settings.backend == "torch"
    with pytest.raises(ValueError, match="want --sync-norms None as the run had, got True"):
        settle({**given, "sync_norms": True}, state)


@pytest.mark.parametrize("saved", [1, 4])
def test_a_state_of_more_gpus_is_taken_up(tmp_path, monkeypatch, saved):
    _, trainer = train(tmp_path, steps=1)
    states, restored = [torch.tensor([number]) for number in range(saved)], []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *given: restored.append(given))
    trainer.device = torch.device("cuda", 2)
    trainer.restore({**load_state(tmp_path / "state/last.pt"), "cuda_rng": states})
    assert restored == [(states[min(saved - 1, 2)], trainer.device)]


def test_bad_arguments_are_named(capsys, tmp_path):
    assert main(["--data", str(tmp_path / "none"), "--output", str(tmp_path / "run")]) == 1
    assert "none" in capsys.readouterr().err
    assert main(["--output", str(tmp_path / "run")]) == 1
    assert "want --data with a folder, got none" in capsys.readouterr().err
    command = ["--data", "scenes", "--output", str(tmp_path / "run"), "--device", "cuda"]
    assert main([*command, "--cuda-graph", "--backend", "torch"]) == 1
    kernels = "want native or Triton kernels of match_priors with --cuda-graph, got torch"
    assert kernels in capsys.readouterr().err
    assert main([*command, "--cuda-graph", "--model-options", "{backend: torch}"]) == 1
    assert kernels in capsys.readouterr().err
    with pytest.raises(ValueError, match="want a --backend for cpu, got triton: triton runs on"):
        options(tmp_path, backend="triton")
    with pytest.raises(ValueError, match="want --device cpu or cuda, got abacus"):
        options(tmp_path, device="abacus")
    with pytest.raises(ValueError, match="want a device of this machine, got meta"):
        train(tmp_path, device="meta")
    with pytest.raises(ValueError, match=r"want --model-options of ssd_tiny, got \{'depth'"):
        train(tmp_path, model_options={"depth": 3})
    for text in ("{width: [}", "32"):
        with pytest.raises(SystemExit):
            main([*command, "--model-options", text])
        assert f"want YAML such as '{{width: 32}}', got '{text}'" in capsys.readouterr().err
    (tmp_path / "bad.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"bad\.safetensors: want"):
        train(tmp_path, model=None, weights=str(tmp_path / "bad.safetensors"))


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        *((name, 0, "above 0") for name in ("steps", "batch_size", "accumulate", "image_size")),
        *((name, -1, "of 0 or more") for name in ("clip_grad", "ema", "freeze", "eval_every")),
        *(("lr", value, "above 0") for value in (-1, math.nan, math.inf)),
        *(("epochs", value, "above 0") for value in (math.nan, math.inf)),
    ],
)
def test_numbers_out_of_range_are_named(tmp_path, name, value, bound):
    option = name.replace("_", "-")
    with pytest.raises(ValueError, match=f"want a finite --{option} {bound}, got {value}"):
        options(tmp_path, **{"batch_size": None, name: value})


def test_classes_are_evaluated_by_name(whole, tmp_path):
    """A json of COCO may number the categories of val in another way than those of train."""

    class Renumbered(Scenes):
        def __init__(self, *given):
            super().__init__(*given)
            self.class_names = self.class_names[::-1]

        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return replace(sample, labels=4 - sample.labels)

    eval_set = Renumbered(8, 1)
    _, trainer = train(tmp_path, eval_set=eval_set)
    with open(whole / "results.csv") as file:
        scores = [float(row["map50"]) for row in csv.DictReader(file) if row["map50"]]
    assert (
        scores == [row["map50"] for row in trainer.rows if row["map50"] != ""] and max(scores) > 0
    )
    eval_set.class_names = ["another"]
    with pytest.raises(ValueError, match=r"want some of .* to evaluate on, got \['another'\]"):
        train(tmp_path, eval_set=eval_set)
    with pytest.raises(ValueError, match="want pictures to evaluate on, got none"):
        train(tmp_path, eval_set=[])


def test_a_run_is_not_overwritten(whole, capsys):
    assert main(["--data", "somewhere", "--output", str(whole)]) == 1
    assert "want a new --output, or --resume" in capsys.readouterr().err
