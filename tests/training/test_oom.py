"""Which errors mean that memory ran out."""

import pytest
import torch

from distrib.training.oom import is_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError(
            "NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'"
        ),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_memory_that_ran_out_is_recognized(error):
    assert is_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory")],
    ids=str,
)
def test_other_errors_are_not(error):
    assert not is_of_memory(error)
