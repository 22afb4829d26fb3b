"""The device that a name means on this machine."""

import torch


def device_named(name: str | torch.device | None = None) -> torch.device:
    """A device by its name; None is the accelerator where there is one, else the CPU.

    Raises ValueError in one line for a device that is not here. A build of torch for GPUs names one on any machine.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    try:
        place = torch.device(name or accelerator or "cpu")
        torch.zeros(1, device=place).item()  # which the meta device has not
    except (AssertionError, RuntimeError):
        there = f"cpu or {accelerator}" if accelerator else "cpu"
        raise ValueError(f"there is no device {str(name)!r} here; give {there}.") from None
    return place
