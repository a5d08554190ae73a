"""Where the time of training goes: throughput, use of the device, waiting for data, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import psutil
import torch

from rwkv_jobs.worker import Worker
from rwkvctl.launch.heartbeat import mark

T = TypeVar("T")

PEAK_TFLOPS = {
    "B200": 2250.0, "H200": 989.0, "H100": 989.0, "H800": 989.0, "A100": 312.0, "A800": 312.0, "A40": 149.7,
    "A10": 125.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0, "V100": 125.0, "T4": 65.0, "4090": 165.2, "3090": 71.0,
}  # fmt: skip
"""Dense bf16 (V100, T4: fp16) operations per second, in 10^12, as the vendor's data sheets have them."""
FLOPS_PER_MAC = 6
"""Of a training step: two in the forward pass, and twice as many in the backward pass."""


class Meter:
    """Measures from one call of `metrics` to the next."""

    def __init__(self, me: Worker, batch_size: int, macs: int):
        self.me, self.batch_size = me, batch_size
        peak = peak_flops(me.device)
        self.flops_at_peak = peak and FLOPS_PER_MAC * macs / (peak * me.world_size)  # seconds for an image
        self.process = psutil.Process()
        self.start()

    def start(self) -> None:
        """Leave out what has just happened: a validation, a checkpoint."""
        self.clock, self.waited, self.steps = time.monotonic(), 0.0, 0
        psutil.cpu_percent()  # since the last call

    def batches(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, one a step, with an eye on how long each lets this worker wait."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            mark("data")
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waited += time.monotonic() - asked
            mark("step")
            yield batch
            self.steps += 1

    def metrics(self) -> dict[str, float]:
        """Since the last call, this step included; shares are of this worker's time."""
        elapsed, images = time.monotonic() - self.clock, (self.steps + 1) * self.batch_size
        values = {
            "train/images_per_second": images / elapsed,
            "train/seconds_per_step": elapsed / (self.steps + 1),
            "train/data_wait": self.waited / elapsed,
            "train/peak_memory_bytes": peak_memory(self.me.device),
            **of_machine(),
        }
        if self.flops_at_peak:
            values["train/mfu"] = self.flops_at_peak * images / elapsed
            values |= of_gpu(self.me.device)
        self.clock, self.waited, self.steps = time.monotonic(), 0.0, -1
        return values


def peak_flops(device: torch.device) -> float | None:
    """Operations per second that a device is sold with; None for a CPU, or a GPU that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name.replace("-", " ").split()), None)


def peak_memory(device: torch.device) -> float:
    """Bytes: of the GPU since the start, or this process's largest resident set."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def of_machine() -> dict[str, float]:
    """What MLflow's monitors of a machine would say of rank 0's, under their names; the network's since it booted."""
    memory, network = psutil.virtual_memory(), psutil.net_io_counters()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": memory.percent,
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/network_receive_megabytes": network.bytes_recv / 1e6,
        "system/network_transmit_megabytes": network.bytes_sent / 1e6,
    }


def of_gpu(device: torch.device) -> dict[str, float]:
    """How busy the GPU is, where NVIDIA's library is installed."""
    free, total = torch.cuda.mem_get_info(device)
    used = {"system/gpu_memory_usage_megabytes": (total - free) / 1e6}
    try:
        return used | {
            "system/gpu_utilization_percentage": float(torch.cuda.utilization(device)),
            "system/gpu_power_usage_watts": torch.cuda.power_draw(device) / 1000,
        }
    except (ModuleNotFoundError, RuntimeError):
        return used
