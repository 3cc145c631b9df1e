"""Flags with which XLA compiles quickly; it ends the process at a flag that it does not know."""

import importlib.metadata

JAXLIB = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
# They set up an MLIR context for every program. jaxlib 0.12 has no such flag.
HAS_FUSION_EMITTERS = JAXLIB <= (0, 10)


def code_generation(*, quick: bool) -> str:
    """The flags for programs that run once, or those that users have; each is set, as one that is left out stays."""
    flags = f" --xla_cpu_parallel_codegen_split_count={1 if quick else 32}"
    return f"{flags} --xla_cpu_use_fusion_emitters={str(not quick).lower()}" if HAS_FUSION_EMITTERS else flags
