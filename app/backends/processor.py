"""Which precision this processor is fastest in."""

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def is_fast_in_bf16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether bf16 takes less time than fp32: with AMX, or with AVX-512 BF16 on a processor that is not Intel's.

    Intel's AVX-512 multiplies bf16 no faster than float32, and the conversions come on top. A window of the default
    network took 0.80 s in bf16 and 0.55 s in fp32 where a virtual machine hides AMX (Xeon, Emerald Rapids), 0.17 and
    0.36 s on an EPYC (``tools/bench/results`` of commit 60d9b11), 0.3 and 1.1 s with AMX.
    """
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    flags = set(text.split())
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "GenuineIntel" not in flags)
