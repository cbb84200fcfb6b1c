"""A stand-in for an NVIDIA GPU, so that Unsloth's own code runs on a CPU: slow, exact, and for tests alone.

It replaces the device and nothing else: `torch.cuda` answers as a T4 (or an A100), what is put on 'cuda' stays on the
CPU, Triton's kernels run in Triton's own interpreter, bitsandbytes computes with its CPU library. Not Unsloth's own
`UNSLOTH_ALLOW_CPU=1`: that skips its rewriting of the trainer, which is what the tests are about.

    install((7, 5))     # before anything of Unsloth's is imported
    after_import()      # imports Unsloth, and replaces what exists only then
"""

from __future__ import annotations

import contextlib
import os
import types
from typing import Any

GIB = 2**30
T4, A100 = (7, 5), (8, 0)
SETTINGS = {
    "TRITON_INTERPRET": "1",  # Triton's kernels as Python on the CPU
    "TORCHDYNAMO_DISABLE": "1",  # torch.compile would write CUDA code
    "HF_HUB_OFFLINE": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",  # transformers loads in threads, which the device mode below does not reach
}
CUDA_ONLY = [
    "cdequantize_blockwise_fp32", "cdequantize_blockwise_fp16_nf4", "cdequantize_blockwise_bf16_nf4",
    "cdequantize_blockwise_fp32_nf4", "cgemm_4bit_inference_naive_fp16", "cgemm_4bit_inference_naive_bf16",
    "cgemv_4bit_inference_naive_fp16", "cgemv_4bit_inference_naive_bf16",
]  # fmt: skip
"""Functions of bitsandbytes' CUDA library that Unsloth looks up as it is imported."""


def install(capability: tuple[int, int] = T4) -> None:
    """Let this process see one GPU of that compute capability. For good."""
    os.environ.update(SETTINGS)
    import torch

    _bitsandbytes()
    _triton()
    for name, answer in _answers(capability).items():
        setattr(torch.cuda, name, answer)
        if hasattr(torch.cuda.random, name):
            setattr(torch.cuda.random, name, answer)
    torch.version.cuda = "12.8"
    torch._C._cuda_getCurrentRawStream = lambda *_: 0
    torch._C._cuda_getDevice = lambda: 0
    torch._C._cuda_isInBadFork = False
    torch.accelerator.is_available = lambda: True
    torch.accelerator.current_accelerator = lambda *_, **__: torch.device("cuda")
    torch.accelerator.device_count = lambda: 1
    _cpu_for_cuda().__enter__()


def after_import() -> None:
    """Import Unsloth and replace what exists only then."""
    import bitsandbytes
    import unsloth  # noqa: F401
    from unsloth.kernels import utils
    from unsloth.models import llama

    set_attribute = llama.LlamaRotaryEmbedding.__setattr__

    def by_device(self: Any, name: str, value: Any) -> None:
        set_attribute(self, name, _ByDevice(value) if name.startswith("multi_gpu_") and type(value) is list else value)

    llama.LlamaRotaryEmbedding.__setattr__ = by_device
    # For nf4 Unsloth calls the CUDA library by pointers; for other types bitsandbytes' own function, which a CPU has.
    utils._quant_type = lambda state: "by bitsandbytes"
    make = bitsandbytes.nn.Linear4bit.__init__

    def unpacked(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.support_avx512bf16_for_cpu = False  # the packed product, which no GPU has, has no gradient

    bitsandbytes.nn.Linear4bit.__init__ = unpacked


def _bitsandbytes() -> None:
    import bitsandbytes.functional  # now, before there is a GPU: it takes its CPU library

    def no_kernel(*_: Any) -> None:
        raise RuntimeError("no CUDA kernel here")

    no_kernel.restype = None  # type: ignore[attr-defined]  # as a function of ctypes has: Unsloth looks for it
    for name in CUDA_ONLY:
        setattr(bitsandbytes.functional.lib, name, no_kernel)


def _triton() -> None:
    import triton.language
    from triton.backends.nvidia import driver

    # Where it raises, Unsloth, run as root, calls `ldconfig` and so writes to the machine.
    driver.libcuda_dirs = lambda *_: []
    # Unsloth keeps `tl.cast` under another name, where the interpreter can't replace it.
    triton.language.cast = lambda x, dtype, **_: x.to(dtype) if hasattr(x, "to") else x


def _cpu_for_cuda() -> Any:
    import torch
    from torch.overrides import TorchFunctionMode

    def on_cpu(device: Any) -> Any:
        if isinstance(device, torch.device):
            return torch.device("cpu") if device.type == "cuda" else device
        is_cuda = isinstance(device, str) and (device == "cuda" or device.startswith("cuda:"))
        return "cpu" if is_cuda or type(device) is int else device

    class CpuForCuda(TorchFunctionMode):
        """Every tensor function, with 'cuda' read as 'cpu'."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            name = getattr(func, "__name__", "")
            if func is torch.device:
                return torch.device("meta" if args and args[0] == "meta" else "cpu")
            if name in ("cuda", "pin_memory"):
                return args[0]
            if "device" in kwargs:
                kwargs["device"] = on_cpu(kwargs["device"])
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
            if name == "to":  # the device may be an index or a name
                args = (args[0], *(on_cpu(a) if i == 0 or type(a) is not int else a for i, a in enumerate(args[1:])))
            else:
                args = tuple(on_cpu(a) if isinstance(a, torch.device) else a for a in args)
            return func(*args, **kwargs)

    return CpuForCuda()


class _ByDevice(list):
    """Unsloth's caches by the device's index, which a CPU has not: None is 0."""

    def __getitem__(self, index: Any) -> Any:
        return list.__getitem__(self, 0 if index is None else index)

    def __setitem__(self, index: Any, value: Any) -> None:
        list.__setitem__(self, 0 if index is None else index, value)


class _Stream:
    """A CUDA stream or event: everything is done as soon as it is asked for."""

    cuda_stream = 0
    idx = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        import torch

        self.device = torch.device("cpu")

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: Any) -> bool:
        return False

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 0.0

    def record_event(self, *_: Any) -> _Stream:
        return self

    def record(self, *_: Any) -> None:
        pass

    wait = synchronize = wait_stream = wait_event = record


def _answers(capability: tuple[int, int]) -> dict[str, Any]:
    """What `torch.cuda` says: one GPU with 15 GiB, of which one is in use."""
    import torch

    properties = types.SimpleNamespace(
        name="stand-in for a T4" if capability < A100 else "stand-in for an A100",
        major=capability[0], minor=capability[1], total_memory=15 * GIB, multi_processor_count=40, warp_size=32,
        regs_per_multiprocessor=65536, shared_memory_per_block_optin=65536, max_threads_per_multi_processor=1024,
        gcnArchName="", L2_cache_size=4194304, is_integrated=False, uuid="0",
    )  # fmt: skip

    def always(value: Any) -> Any:
        return lambda *_, **__: value

    nothing = ["_lazy_init", "init", "reset_peak_memory_stats", "empty_cache", "ipc_collect", "synchronize",
               "set_device", "set_stream", "manual_seed", "manual_seed_all", "seed_all", "set_rng_state",
               "set_rng_state_all", "set_per_process_memory_fraction"]  # fmt: skip
    zero = ["memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved", "current_device"]
    return {
        **{name: always(None) for name in nothing},  # each its own function: torch.compile's rules go by identity
        **{name: always(0) for name in zero},
        **{name: always(True) for name in ("is_available", "is_initialized", "_is_compiled")},
        "device_count": always(1),
        "get_device_capability": always(capability),
        "get_device_properties": always(properties),
        "get_device_name": always(properties.name),
        "is_bf16_supported": lambda including_emulation=True: capability >= A100 or including_emulation,
        "mem_get_info": always((14 * GIB, 15 * GIB)),
        "memory_stats": always({}),
        "get_rng_state": lambda *_, **__: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": always([]),
        "Stream": _Stream,
        "Event": _Stream,
        "device": _Stream,
        "current_stream": lambda *_, **__: _Stream(),
        "default_stream": lambda *_, **__: _Stream(),
        "stream": lambda *_, **__: contextlib.nullcontext(),
        "device_of": lambda *_, **__: contextlib.nullcontext(),
    }
