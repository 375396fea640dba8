"""The benchmarks' own parts: tables, kinds of kernels, and the script for a GPU on stubs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from bench import gpu_bench, kernels, models, table, whole  # noqa: E402


def entry(group, column, seconds, device="a CPU", **more):
    info = {"column": column, "device": device, "threads": 2, "load": 0.5, "torch": "2.11"}
    info |= {"floor_seconds": 1e-3, **more}
    return {"group": group, "stats": {"median": seconds}, "extra_info": info}


def test_each_device_has_its_table():
    entries = [
        entry("nms-forward-N400", "native", 2e-3),
        entry("nms-forward-N400", "torchvision", 4e-3),
        entry("nms-forward-N400", "native", 5e-6, "a GPU"),
    ]
    text = table.table(entries)
    assert "| nms-forward-N400 | 4 | 2 | 2.0x | 1 | 2.0x |" in text
    assert "| nms-forward-N400 | 0.005 |  | 1 | 0.0x |" in text
    assert text.index("a CPU, 2 threads") < text.index("0.005") < text.index("a GPU, 2 threads")
    assert "before it was timed. The floor is" in text


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (
            "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize",
            "convolutions",
        ),
        (
            "cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816wgrad_optimized_bf16>",
            "convolutions",
        ),
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_NNT", "convolutions"),
        ("triton_tem_fused_convolution_relu_3", "convolutions"),
        ("triton_poi_fused_convolution_max_pool2d_with_indices_relu_7", "rest"),
        ("triton_red_fused_convolution_backward_threshold_backward_12", "rest"),
        ("cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, float>", "rest"),
        ("at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", "rest"),
        ("Memcpy HtoD", "rest"),
        ("ssdkern::class_kernel<float, ssdkern::Softmax<__nv_bfloat16>>", "ours"),
        ("_match_priors_kernel", "ours"),
    ],
)
def test_kinds_of_kernels(name, kind):
    assert kernels.kind(name) == kind


def test_shares_of_kernels():
    times = {"nvjet_a": 90.0, "ssdkern::merge_kernel<float>": 6.0, "Memset": 4.0}
    assert kernels.shares(times) == pytest.approx({"convolutions": 0.9, "ours": 0.06, "rest": 0.04})
    assert kernels.shares({}) == {}


def test_what_cannot_be_timed_has_a_reason():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert "needs --device cuda, got cpu" in whole.cannot("native", "ssd300", "captured", cpu)
    assert "eager or compiled" in whole.cannot("torchvision", "ssd300", "compiled+captured", gpu)
    assert "no ssd512" in whole.cannot("torchvision", "ssd512", "eager", gpu)
    assert whole.cannot("native", "ssd512", "compiled+captured+host", gpu) is None
    assert whole.cannot("torchvision", "ssd300", "compiled", cpu) is None


def test_report_file_is_named_after_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_bench, "RESULTS", tmp_path)
    assert gpu_bench.report_file("NVIDIA H200").name == "h200.json"
    assert gpu_bench.report_file("AMD Instinct MI300X", "-models").name.startswith("amd-instinct")


def test_report_of_models(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_bench, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(shutil, "which", lambda name: None)  # a machine without git
    speed = {"of_matrix_rate": 0.5, "images_per_second": 1600.0}
    shares = {"convolutions": 0.97, "ours": 0.02, "rest": 0.01}
    entries = [
        entry("train-captured-ssd300-B32", "native", 0.02, **speed, shares=shares),
        entry(
            "train-eager-ssd300-B32", "torchvision", 0.08, **speed | {"images_per_second": 400.0}
        ),
    ]
    entries.append(entries[0] | {"extra_info": {}})  # as pytest-benchmark has one cut off
    (tmp_path / "a.json").write_text(json.dumps({"benchmarks": entries}))
    (tmp_path / "cut.json").write_text("")
    (tmp_path / "r.csv").write_text("step,images_per_second,data_wait\n2,10.5,0.1\n40,900.5,0.2\n")
    reports = [str(tmp_path / name) for name in ("a.json", "cut.json", "none.json")]
    models.main(["--training", str(tmp_path / "r.csv"), *reports])
    said = capsys.readouterr().out
    row = "train-captured-ssd300-B32 | native | 20.00 | 1600.0 | 50% | 97.0% | 2.0% | 4.0x"
    assert row in said and "900.5 images/s at step 40" in said
    (file,) = (tmp_path / "results").iterdir()
    report = json.loads(file.read_text())
    assert file.name.endswith("-models.json") and report["commit"] == ""
    assert report["rows"][0]["against"] == 4 and len(report["training"]) == 2


STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$CALLS"
[[ $* == *"$FAILS"* ]] && echo broken && exit 3
[[ $* == *--help* ]] && echo "  --kernel-name arg   --kernel-name-exclude arg"
[[ $* == *pytest* ]] && echo "12 passed, 2 skipped in 3.40s"
[[ $* == *gpu_bench*--seconds* ]] && echo "op, microseconds | native" && echo "nms N100 | 9.0"
[[ $* == *bench.models* ]] && echo "whole model | ms"
[[ $* == *--seconds* || $* == *bench.models* ]] && echo "{}" >bench/results/a-gpu.json
exit 0
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Runs a copy of bench/gpu_check.sh; its result, the stubs' calls and what it left."""
    tree, tools = tmp_path / "tree", tmp_path / "bin"
    for folder in (tools, tree / "bench/results", tree / "csrc/cuda", tree / "tests"):
        folder.mkdir(parents=True)
    for name in ("csrc/cuda/nms.cu", "tests/test_nms.py", "bench/results/training.json"):
        (tree / name).write_text("")
    shutil.copy(ROOT / "bench/gpu_check.sh", tree / "bench")
    for name in ("python", "nvidia-smi", "compute-sanitizer"):
        (tools / name).write_text(STUB)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.setenv("PYTHON", str(tools / "python"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))

    def run(*arguments, fails="no such call", seconds=510):
        monkeypatch.setenv("FAILS", fails)
        monkeypatch.setenv("GPU_CHECK_SECONDS", str(seconds))
        command = ["bash", str(tree / "bench/gpu_check.sh"), *arguments, str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True)
        calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
        left = sorted(path.name for path in (tmp_path / "out").glob("*"))
        return done, calls, left

    return run


def test_the_script_for_kernels(check):
    done, calls, left = check("kernels")
    assert done.returncode == 0, done.stdout + done.stderr
    assert left == ["a-gpu.json", "kernels.log"]
    order = ["pip install", "not triton", "triton and not cpu", "--tool", "gpu_bench --seconds"]
    places = [calls.index(word) for word in order]
    assert places == sorted(places)
    for tool in ("memcheck --report-api-errors no", "racecheck", "synccheck"):
        assert f"--tool {tool} --kernel-name kns=ssdkern --error-exitcode 1" in calls
    assert "tests/test_nms.py tests/test_cuda_paths.py" in calls
    assert done.stdout.endswith("op, microseconds | native\nnms N100 | 9.0\n")
    assert "native     ok" in done.stdout and "12 passed, 2 skipped in 3.40s" in done.stdout


def test_the_script_for_models(check):
    done, calls, left = check("models")
    assert done.returncode == 0, done.stdout + done.stderr
    assert left == ["a-gpu.json", "models.log"]
    for words in ("tests/test_graphs.py", "--modes compiled+captured,", "--cuda-graph --workers 4"):
        assert words in calls
    assert done.stdout.endswith("whole model | ms\n")


def test_the_script_says_what_failed_and_goes_on(check):
    done, calls, _ = check("kernels", fails="racecheck")
    assert done.returncode == 1 and "racecheck  rc 3" in done.stdout
    assert "gpu_bench --seconds" in calls


def test_the_script_ends_after_a_broken_build(check):
    done, calls, left = check("models", fails="pip install")
    assert done.returncode == 1 and "build      rc 3" in done.stdout and "broken" in done.stdout
    assert "pytest" not in calls and left == ["models.log"]


def test_the_script_keeps_to_its_time(check):
    done, calls, _ = check("models", seconds=0)
    assert done.returncode == 1 and "build      skipped" in done.stdout
    assert "pip install" not in calls
    done, _, _ = check("whatever")
    assert done.returncode == 2 and "want kernels or models, got whatever" in done.stderr
