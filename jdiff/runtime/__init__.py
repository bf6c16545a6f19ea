"""The process that jdiff runs in: what is set before JAX starts, and how several processes make one run.

Imported without JAX, so that its settings come first.
"""

from . import allocator, compilation_cache, xla_flags  # relative: an exported sampler has a copy of these


def setup() -> None:
    """Set the memory allocator, XLA's flags and the compilation cache, each unless the environment already does.

    Call before JAX starts. Afterwards it still sets the allocator, which then covers later allocations, and the cache;
    flags that XLA has already read stay unchanged.
    """
    allocator.keep_freed_memory()
    xla_flags.set_flags()
    compilation_cache.enable()
