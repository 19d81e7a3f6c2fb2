"""What only a GPU can show: graphs, streams, devices, large tensors, and that every configuration gives the same bits."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import hadacore
from hadacore.backends.cuda.launch import kernel_arguments, launch_prepared, prepare
from hadacore.elements import CUDA_ELEMENTS, Element
from hadacore.kernels.architectures import architecture_of
from hadacore.kernels.configurations import candidates, maximum_log2_row
from tests import oracle, tolerances

pytestmark = pytest.mark.gpu

GUARD = 64


@pytest.mark.parametrize("element", CUDA_ELEMENTS, ids=lambda e: e.name)
@pytest.mark.parametrize("log2_size", range(17))
def test_every_configuration_gives_the_same_bits(element: Element, log2_size: int) -> None:
    device = torch.cuda.current_device()
    size = 1 << log2_size
    rows = 5 if log2_size > 9 else (2048 >> log2_size) + 1
    x = torch.randn(rows, size, device="cuda").to(element.dtype)
    exact = oracle.transform(x)
    results = []
    for candidate in candidates(element.cuda_code, log2_size, architecture_of(torch.cuda.get_device_capability())):
        buffer = torch.full((rows * size + 2 * GUARD,), math.nan, dtype=element.dtype, device="cuda")
        out = buffer[GUARD : GUARD + rows * size].view(rows, size)
        prepared = prepare(candidate.configuration, rows, device)
        launch_prepared(prepared, device, kernel_arguments(x, out, size**-0.5, rows, size, None, None))
        assert torch.isnan(buffer[:GUARD]).all() and torch.isnan(buffer[GUARD + rows * size :]).all()
        bound = tolerances.element_bound(x, exact, size, size**-0.5, element.dtype)
        assert ((out.double() - exact).abs() <= bound).all(), candidate
        results.append(out.clone())
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("element", CUDA_ELEMENTS, ids=lambda e: e.name)
@pytest.mark.parametrize("size", [2**k for k in range(17)])
def test_rows_one_to_forty(element: Element, size: int) -> None:
    x = torch.randn(40, size, device="cuda").to(element.dtype)
    together = hadacore.hadamard_transform(x)
    for rows in range(1, 41):
        assert torch.equal(hadacore.hadamard_transform(x[:rows]), together[:rows]), rows


def test_graph_capture_and_replay() -> None:
    x = torch.randn(64, 4096, device="cuda", dtype=torch.float16)
    signs = (torch.randint(0, 2, (4096,), device="cuda") * 2 - 1).half()
    y = torch.empty_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hadacore.hadamard_transform(x, out=y, signs=signs)
        z = hadacore.hadamard_transform(y, signs=signs, inverse=True)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(y, hadacore.hadamard_transform(x, signs=signs))
        assert torch.equal(z, hadacore.hadamard_transform(y, signs=signs, inverse=True))


def test_first_use_inside_a_capture(tmp_path: Path) -> None:
    code = (
        "import torch, hadacore\n"
        "x = torch.randn(8, 32768, device='cuda').half()\n"
        "graph = torch.cuda.CUDAGraph()\n"
        "with torch.cuda.graph(graph):\n"
        "    y = hadacore.hadamard_transform(x)\n"
        "graph.replay()\n"
        "torch.cuda.synchronize()\n"
        "assert torch.equal(y, hadacore.hadamard_transform(x))\n"
    )
    for _ in ("empty cache", "from disk"):
        environment = {**os.environ, "HADACORE_CACHE_DIR": str(tmp_path / "cache")}
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def test_side_stream_is_ordered() -> None:
    stream = torch.cuda.Stream()
    x = torch.zeros(4096, 1024, device="cuda")
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        x.fill_(1.0)
        y = hadacore.hadamard_transform(x, scale=1.0)
    stream.synchronize()
    assert (y[:, 0] == 1024).all() and not y[:, 1:].any()


def test_threads_on_their_own_streams() -> None:
    x = torch.randn(100, 8192, device="cuda", dtype=torch.bfloat16)
    expected = hadacore.hadamard_transform(x)
    torch.cuda.synchronize()
    wrong: list[str] = []

    def work() -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(20):
                    y = hadacore.hadamard_transform(x)
                torch.cuda.current_stream().synchronize()
                if not torch.equal(y, expected):
                    wrong.append("different")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device() -> None:
    x = torch.randn(7, 16384, device="cuda:1", dtype=torch.float16)
    assert torch.cuda.current_device() == 0
    y = hadacore.hadamard_transform(x)
    assert torch.cuda.current_device() == 0 and y.device == x.device
    assert torch.equal(y.cpu(), hadacore.hadamard_transform(x.to("cuda:0")).cpu())


@pytest.mark.parametrize("size", [1, 128, 32768, 65536])
def test_more_than_two_to_the_31_elements(size: int) -> None:
    rows = 2**31 // size + 3
    if torch.cuda.mem_get_info()[0] < 5 * rows * size:
        pytest.skip("needs about 11 GB of GPU memory")
    x = torch.empty(rows, size, device="cuda", dtype=torch.bfloat16)
    x.uniform_(-1, 1)
    tail = hadacore.hadamard_transform(x[-5:])
    middle = hadacore.hadamard_transform(x[rows // 2 : rows // 2 + 5])
    hadacore.hadamard_transform_(x)
    assert torch.equal(x[-5:], tail) and torch.equal(x[rows // 2 : rows // 2 + 5], middle)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("element", CUDA_ELEMENTS, ids=lambda e: e.name)
def test_rows_of_65536_alone_with_signs_and_at_strides(element: Element, inverse: bool) -> None:
    """Where a cluster holds a row, it takes one launch: no workspace, no copy."""
    size = 1 << 16
    architecture = architecture_of(torch.cuda.get_device_capability())
    in_one = maximum_log2_row(element.cuda_code, architecture) == 16
    x = torch.randn(9, 2, size, device="cuda").to(element.dtype)[:, 1]
    y = torch.empty(9, size, device="cuda", dtype=element.dtype)
    signs = (torch.randint(0, 2, (size,), device="cuda") * 2 - 1).to(element.dtype)
    for given in (None, signs):
        expected = hadacore.hadamard_transform(x.contiguous(), signs=given, inverse=inverse)
        exact = oracle.transform(x, signs=given, inverse=inverse)
        bound = tolerances.element_bound(x, exact, size, size**-0.5, element.dtype)
        assert ((expected.double() - exact).abs() <= bound).all()
        assert torch.equal(hadacore.hadamard_transform(x[3], signs=given, inverse=inverse), expected[3])
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        hadacore.hadamard_transform(x, out=y, signs=given, inverse=inverse)
        assert not in_one or torch.cuda.memory_stats()["allocation.all.allocated"] == before
        assert torch.equal(y, expected)
    hadacore.hadamard_transform_(x, signs=signs, inverse=inverse)
    assert torch.equal(x, expected)


def test_strided_rows_are_read_in_place() -> None:
    """A slice of a fused projection needs no copy: one kernel, no second allocation."""
    projection = torch.randn(1024, 3, 32, 128, device="cuda", dtype=torch.float16)
    query = projection[:, 0]
    y = torch.empty(1024, 32, 128, device="cuda", dtype=torch.float16)
    expected = hadacore.hadamard_transform(query.contiguous())
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    hadacore.hadamard_transform(query, out=y)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    assert torch.equal(y, expected)
    hadacore.hadamard_transform_(query)
    assert torch.equal(query, expected)


@pytest.mark.parametrize("size", [8, 128, 4096, 65536])
def test_unaligned_views(size: int) -> None:
    storage = torch.randn(5 * size + 1, device="cuda", dtype=torch.float16)
    x = storage[1:].view(5, size)
    assert torch.equal(hadacore.hadamard_transform(x), hadacore.hadamard_transform(x.clone()))


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_sanitizer(tool: str) -> None:
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    if tool == "memcheck":  # cuda.bindings asks the driver for functions of newer versions, which is no memory error
        command += ["--report-api-errors", "no"]
    command += [sys.executable, "-m", "tests.gpu.sanitize"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]
