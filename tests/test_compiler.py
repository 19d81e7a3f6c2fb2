"""Compilation and the kernel cache. NVRTC needs no GPU, so this runs everywhere."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hadacore.backends import cuda
from hadacore.backends.cuda import compiler, requirements
from hadacore.backends.cuda.cache import CACHE_VARIABLE, KernelCache, cache_folder, refusal
from hadacore.errors import BackendUnavailableError
from hadacore.formats import BY_NAME as FORMATS
from hadacore.formats import Quantizer
from hadacore.kernels.architectures import BY_NAME, CHECKED
from hadacore.kernels.configurations import (
    AFTER_LOADS,
    AFTER_WAIT,
    BEFORE_EXCHANGE,
    NO_SIGNS,
    SIGNS_BEFORE,
    KernelConfiguration,
    candidates,
    maximum_log2_row,
)
from hadacore.kernels.fusion import fused_prologue, fusion_of_heads
from hadacore.kernels.heads import HeadsConfiguration
from hadacore.kernels.source import constants, copy_source, kernel_source
from hadacore.prologues import RotaryEmbedding

SMALL = KernelConfiguration("warp_rows", 0, 7)


def _compile(folder: Path, configuration: KernelConfiguration = SMALL) -> tuple[compiler.CompiledKernel, bool]:
    return compiler.cached_compile(kernel_source(configuration), constants(configuration), "sm_90a", folder=folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    compiler.open_cache.cache_clear()
    return tmp_path / "cache"


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000]


@pytest.mark.parametrize("architecture", CHECKED)
def test_large_kernels_stay_in_registers(architecture: str) -> None:
    """The hardest configurations; `.ci/run` compiles all of them."""
    for code in (0, 2):
        sizes = range(15, maximum_log2_row(code, BY_NAME[architecture]) + 1)
        for candidate in (c for k in sizes for c in candidates(code, k, BY_NAME[architecture])):
            resources = compiler.resources_of(candidate.configuration, architecture)
            assert resources.stays_in_registers, (candidate.configuration, resources)
            assert (
                resources.registers * candidate.configuration.threads * candidate.configuration.minimum_blocks <= 65536
            )


@pytest.mark.parametrize("architecture", CHECKED)
def test_kernels_of_heads_stay_in_registers(architecture: str) -> None:
    """Queries of 32 heads for 8 scales, keys of 8: both passes, with a rotary embedding, with signs."""
    for log2_size, heads, has_rope, signs, measures in (
        (7, 32, False, NO_SIGNS, True), (7, 32, False, NO_SIGNS, False), (7, 8, True, NO_SIGNS, True),
        (7, 32, True, SIGNS_BEFORE, False), (6, 32, False, NO_SIGNS, True), (8, 8, True, SIGNS_BEFORE, True),
    ):  # fmt: skip
        n = 1 << log2_size
        prologue = fused_prologue(RotaryEmbedding(False), n, n // 2, True) if has_rope else None
        fusion = fusion_of_heads(Quantizer(FORMATS["fp8_e4m3"], n), False, heads, 8, prologue)
        configuration = HeadsConfiguration(1, log2_size, heads, 8, measures, fusion, signs=signs)
        found = compiler.resources_of(configuration.for_architecture(BY_NAME[architecture]), architecture)
        assert found.stays_in_registers, f"{configuration} on {architecture}: {found}"


def test_resources_report_a_spill() -> None:
    """The check can fail: 128 fp32 values a thread and a register cap of 64 do not fit."""
    crowded = KernelConfiguration("exchange_rows", 0, 15, 3, 16, minimum_blocks=2)
    assert not compiler.resources_of(crowded, "sm_90a").stays_in_registers


def test_a_report_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the assembler.s report has no .*registers"):
        compiler.parse_report("")


def test_options_cost_nothing_when_unused() -> None:
    """A kernel without signs and strides is the same machine code whatever those options are elsewhere."""
    plain = constants(SMALL)
    assert dict(plain)["SIGNS"] == "0" and dict(plain)["STRIDED"] == "0"
    code = compiler.compile_source(kernel_source(SMALL), plain, "sm_90a").code
    signed = KernelConfiguration("warp_rows", 0, 7, signs=SIGNS_BEFORE)
    assert code != compiler.compile_source(kernel_source(SMALL), constants(signed), "sm_90a").code


@pytest.mark.parametrize("architecture", [name for name in CHECKED if BY_NAME[name].has_clusters])
def test_programmatic_launch_compiles(architecture: str) -> None:
    large = KernelConfiguration("exchange_rows", 0, 12, 2, 4)
    for configuration, point in (
        (SMALL, AFTER_WAIT),
        (SMALL, AFTER_LOADS),
        (large, AFTER_WAIT),
        (large, BEFORE_EXCHANGE),
    ):
        assert compiler.resources_of(replace(configuration, programmatic=point), architecture).stays_in_registers


def test_copy_kernel_compiles() -> None:
    assert compiler.compile_source(copy_source(), (("UNITS", "4"),), "sm_80").code_type == "cubin"


def test_second_compile_comes_from_disk(folder: Path) -> None:
    first, hit = _compile(folder)
    assert not hit and first.code_type == "cubin"
    compiler.open_cache.cache_clear()
    second, hit = _compile(folder)
    assert hit and second == first
    assert folder.stat().st_mode & 0o777 == 0o700
    cache = KernelCache(folder)
    assert len(cache) == 1 and cache.size_in_bytes() > len(first.code)


@pytest.mark.parametrize("damage", ["truncate", "foreign", "empty", "flip"])
def test_damaged_files_are_compiled_again(folder: Path, damage: str) -> None:
    first, _ = _compile(folder)
    (entry,) = _entries(folder)
    content = entry.read_bytes()
    middle = len(content) // 2
    entry.write_bytes(
        {
            "truncate": content[:middle],
            "foreign": first.code,  # a real kernel that this cache did not write
            "empty": b"",
            "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        }[damage]
    )
    again, hit = _compile(folder)
    assert not hit and again.code == first.code
    assert _compile(folder)[1]


def test_folder_that_others_can_write_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.warns(
        UserWarning, match=r"does not use its kernel cache: .*can be written by other users \(mode 777\)"
    ):
        _, hit = _compile(folder)
    assert not hit and not _entries(folder)
    assert not _compile(folder)[1]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_folder_of_another_user_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, 4321, 4321)
    assert "belongs to user 4321" in (refusal(folder) or "")


def test_read_only_folder_still_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "read-only")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        _, hit = _compile(folder)
    assert not hit and not folder.exists()


def test_full_disk_still_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "mkstemp", refuse)
        assert not _compile(folder)[1]
    assert not _compile(folder)[1]
    assert _compile(folder)[1]


def _fill(folder: Path, start: float) -> None:
    time.sleep(max(0.0, start - time.time()))
    for log2_size in range(8):
        _compile(folder, KernelConfiguration("warp_rows", 0, log2_size))


def test_concurrent_processes_and_kill_leave_whole_files(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = time.time() + 4
    writers = [context.Process(target=_fill, args=(folder, start)) for _ in range(3)]
    for writer in writers:
        writer.start()
    time.sleep(max(0.0, start - time.time()) + 0.3)
    os.kill(writers[0].pid, signal.SIGKILL)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers[1:]] == [0, 0]
    hits = [_compile(folder, KernelConfiguration("warp_rows", 0, log2_size))[1] for log2_size in range(8)]
    assert hits == [True] * 8


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hadacore"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "hadacore"


def test_missing_cuda_core_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    requirements.cuda_core.cache_clear()
    try:
        with pytest.raises(
            BackendUnavailableError, match=r'needs the package cuda-core.*pip install "hadacore\[cuda1\d\]"'
        ):
            requirements.cuda_core()
    finally:
        requirements.cuda_core.cache_clear()


def test_first_use_by_several_threads() -> None:
    """A thread waits for another one's import to be done."""
    code = """
        import time
        from concurrent.futures import ThreadPoolExecutor
        from hadacore.backends.cuda import requirements
        def find(number):
            time.sleep(0.01 * number)
            return requirements.cuda_core.__wrapped__().ProgramOptions
        with ThreadPoolExecutor(40) as threads:
            assert len(set(threads.map(find, range(40)))) == 1
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_amd_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    requirements.cuda_core.cache_clear()
    try:
        with pytest.raises(
            BackendUnavailableError, match=r"built for AMD GPUs \(ROCm 6.4\).*move the tensor to the CPU"
        ):
            requirements.cuda_core()
    finally:
        requirements.cuda_core.cache_clear()


@pytest.mark.gpu
def test_architecture_beyond_the_compiler_gets_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_known_architectures", lambda: (80, 90))
    newer = compiler.compile_source(kernel_source(SMALL), constants(SMALL), "sm_120")
    assert newer.code_type == "ptx" and b".target sm_90" in newer.code


def test_architecture_before_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_known_architectures", lambda: (90, 100))
    with pytest.raises(BackendUnavailableError, match="compiles for sm_90 and newer, not for sm_80"):
        compiler.compile_source(kernel_source(SMALL), constants(SMALL), "sm_80")


def test_support_without_a_gpu_gives_a_reason() -> None:
    support = cuda.support()
    assert support.reason
    if not support.available:
        assert "GPU" in support.reason or "CUDA" in support.reason or "cuda" in support.reason


def test_compiling_leaves_torch_alone() -> None:
    """Filling a cache needs no GPU, no driver and no CUDA build of torch."""
    code = (
        "import tempfile, pathlib, torch\n"
        "from hadacore.backends.cuda import compiler\n"
        "from hadacore.kernels.configurations import KernelConfiguration\n"
        "print(compiler.resources_of(KernelConfiguration('warp_rows', 0, 7), 'sm_80').registers)\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and int(result.stdout) > 0, result.stderr
