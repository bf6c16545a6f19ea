"""What ``jdiff.setup`` sets before and after JAX has started, each case in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

from jdiff.runtime import xla_flags

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
SETTINGS = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "GLIBC_TUNABLES")


def run(program, **environment):
    """What a Python program prints, in an environment without the settings of this one."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | environment
    process = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_setup_imports_neither_jax_nor_numpy_nor_grain():
    program = "import sys, jdiff; jdiff.setup(); print({'jax', 'numpy', 'grain', 'flax'} & set(sys.modules))"
    assert run(program) == "set()"


def test_setup_before_jax_sets_flag_and_cache(tmp_path):
    program = f"""
import jdiff
jdiff.setup()
import jax
import os
print(os.environ["XLA_FLAGS"])
print(jax.config.jax_compilation_cache_dir == {str(tmp_path)!r} + "/.cache/jdiff/compiled")
print(jax.config.jax_persistent_cache_min_compile_time_secs)
"""
    assert run(program, HOME=str(tmp_path)).split() == [f"{FLAG}=-individual_convolution", "True", "0.5"]


def test_load_after_jax_has_started_sets_the_cache_but_no_flag(tmp_path):
    """A program that was compiled before is not cached; one that is compiled afterwards is."""
    program = f"""
import contextlib, os, jax, jdiff
assert jax.jit(lambda x: x + 1)(1) == 2
with contextlib.suppress(FileNotFoundError):
    jdiff.load({str(tmp_path / "nowhere")!r})
assert jax.jit(lambda x: x + 2)(1) == 3
print(os.environ.get("XLA_FLAGS"), len(os.listdir({str(tmp_path)!r} + "/.cache/jdiff/compiled")) > 0)
"""
    output = run(program, HOME=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    assert output == "None True"


@pytest.mark.parametrize(
    ("release", "environment", "expected"),
    [
        ("0.10.2", "", f"{FLAG}=-individual_convolution"),
        ("0.11.2", "--a=1", f"--a=1 {FLAG}=-individual_convolution"),
        ("0.12.0.1", f"{FLAG}=", f"{FLAG}="),
        ("0.13.0", "--a=1", "--a=1"),
    ],
)
def test_flag_is_set_for_releases_that_know_it_unless_the_user_set_it(monkeypatch, release, environment, expected):
    monkeypatch.setenv("XLA_FLAGS", environment)
    monkeypatch.setattr(xla_flags, "_backend_started", lambda: False)
    monkeypatch.setattr(xla_flags.metadata, "version", lambda package: release)
    xla_flags.set_flags()
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_allocator_keeps_freed_memory_unless_the_user_tunes_malloc():
    """64 MiB, allocated and freed twice by a thread: the second time its pages are there, so nothing is faulted."""
    program = """
import resource, threading, jdiff
from jdiff.runtime import allocator
print(allocator.keep_freed_memory())
def allocate():
    for _ in range(2):
        start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        b"x" * 2**26
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
    print(faults)
thread = threading.Thread(target=allocate)
thread.start()
thread.join()
"""
    was_set, faults = run(program).split()
    assert was_set == "True" and int(faults) < 16
    was_set, faults = run(program, GLIBC_TUNABLES="glibc.malloc.perturb=0").split()
    assert was_set == "False" and int(faults) >= 16  # 32 of huge pages, 16384 of small ones
