"""Memory of one NVIDIA GPU, through NVML as ``nvidia-smi`` reads it."""

from app.errors import DeviceError
from tools.profile.scopes import MIB


class Gpu:
    """One device.

    Attributes:
        index: NVML's, which is also that of ``docker --gpus device=N`` and of ``nvidia-smi``.
        name: as the driver gives it.
        total_mib: memory of the device.
    """

    def __init__(self, index: int) -> None:
        """Opens the device.

        Raises:
            DeviceError: no NVML, no driver or no such device.
        """
        try:
            import pynvml
        except ModuleNotFoundError as error:
            raise DeviceError("nvidia-ml-py is not installed; run `make setup`") from error
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            self.name: str = pynvml.nvmlDeviceGetName(self._handle)
            self.total_mib: float = pynvml.nvmlDeviceGetMemoryInfo(self._handle).total / MIB
        except pynvml.NVMLError as error:
            raise DeviceError(f"GPU {index}: NVML says: {error}") from error
        self.index = index

    def memory_mib(self) -> float | None:
        """Total minus free: of the whole device, every process's and the driver's own; None if it does not answer."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        except self._nvml.NVMLError:
            return None
        return float(memory.total - memory.free) / MIB


def find_gpu(index: int | None) -> tuple[Gpu | None, str | None]:
    """(the GPU, None), or (None, why there is none) if no particular one is asked for: then it is the first.

    Raises:
        DeviceError: the GPU that was asked for is not there.
    """
    if index is not None:
        return Gpu(index), None
    try:
        return Gpu(0), None
    except DeviceError as error:
        return None, str(error)
