"""Where the time of scoring goes, by torch's profiler: time by kind of kernel, an idle device, the host's waits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = {  # the first that fits
    "attention": r"prefix_attention|flash|fmha|attention|softmax",
    "gemm": r"gemm|cutlass|cublas|nvjet|xmma|matmul|aten::(addmm|mm|bmm|baddbmm|linear)\b|mkldnn|cijk",
    "copies": r"memcpy|memset|copy|cat|index|gather|scatter|embedding",
    "elementwise": r"elementwise|vectorized|reduce|norm|silu|gelu|aten::(mul|add|mean|rsqrt|pow|neg|tanh|cos|sin)\b",
}
WAITS = r"cuda(Stream|Device|Event)Synchronize|hip(Stream|Device|Event)Synchronize"


class Span(NamedTuple):
    """Something that ran: on the device or the host, when, and for how long, in microseconds."""

    name: str
    on_device: bool
    begun: float
    lasted: float


def kind_of(name: str) -> str:
    return next((kind for kind, words in KINDS.items() if re.search(words, name, re.IGNORECASE)), "other")


def shares(spans: Iterable[Span]) -> dict[str, Any]:
    """Seconds by kind, of the device's whole time and of it idle; how often the host waited, and how long."""
    spans = list(spans)
    device = sorted((span for span in spans if span.on_device), key=lambda span: span.begun)
    seconds = dict.fromkeys([*KINDS, "other"], 0.0)
    busy, end = 0.0, device[0].begun if device else 0.0
    for span in device:
        seconds[kind_of(span.name)] += span.lasted / 1e6
        busy += max(0.0, span.begun + span.lasted - max(end, span.begun))
        end = max(end, span.begun + span.lasted)
    whole = end - device[0].begun if device else 0.0
    waits = [span.lasted / 1e6 for span in spans if not span.on_device and re.search(WAITS, span.name)]
    return {
        "kernel_s": {kind: round(value, 6) for kind, value in seconds.items()},
        "device_s": whole / 1e6,
        "idle_s": (whole - busy) / 1e6,
        "waits": len(waits),
        "waits_s": sum(waits),
    }


def profiled(run: Callable[[], object], device: str) -> dict[str, Any]:
    """``shares`` of one call. On a CPU the operators of torch stand for kernels, each with its own time alone."""
    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as recorded:
        run()
        if cuda:
            torch.cuda.synchronize()
    if not cuda:
        own = [(event.key, event.self_cpu_time_total) for event in recorded.key_averages()]
        edges = [sum(lasted for _, lasted in own[:k]) for k in range(len(own))]
        return shares(Span(name, True, begun, lasted) for (name, lasted), begun in zip(own, edges, strict=True))
    kinds = torch.autograd.DeviceType
    return shares(
        Span(event.name, event.device_type == kinds.CUDA, event.time_range.start, event.time_range.elapsed_us())
        for event in recorded.events()
    )
