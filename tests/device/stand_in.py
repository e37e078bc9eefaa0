"""A CUDA device that is not there: tensors that compute on the CPU and report ``cuda:0``.

torch's ``FakeTensorMode`` holds no values, so it stops at the first ``tolist`` or ``nonzero``;
training and scoring have both. Here the values are real, so that results can be compared with those
of the CPU. An operation that mixes devices in a way that CUDA refuses raises `MixedDevicesError`.
"""

import sys
from collections import Counter
from contextlib import ExitStack
from unittest import mock

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)

_FACTORIES = (
    "arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "ones", "rand",
    "randint", "randn", "randperm", "tensor", "zeros",
)  # fmt: skip
_COLLECTIVES = (
    "all_gather", "all_gather_into_tensor", "all_reduce", "all_to_all_single", "broadcast",
    "reduce", "reduce_scatter_tensor",
)  # fmt: skip
_WAITS = {
    "_local_scalar_dense", "_unique2", "bincount", "equal", "histc", "is_nonzero",
    "linalg_cholesky", "linalg_solve_ex", "masked_scatter", "masked_select", "nonzero",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
"""Operations whose result, or its size, the host reads."""

_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_PLAIN_TO = torch.Tensor.to
_PLAIN_APPLY = nn.Module._apply


class MixedDevicesError(RuntimeError):
    """What CUDA would refuse: tensors of two devices in one operation."""


waits: Counter[tuple[str, str]] = Counter()
"""How often the host waited for the device, by what it did and where."""


class CudaTensor(torch.Tensor):
    """A tensor that reports `CUDA` and holds its values in ``held``, on the CPU."""

    __slots__ = ("held",)
    __torch_function__ = torch._C._disabled_torch_function_impl

    device, is_cuda, is_cpu = CUDA, True, False

    @staticmethod
    def __new__(cls, values):
        is_strided = values.layout == torch.strided
        layout = (values.stride(), values.storage_offset()) if is_strided else ()
        made = torch.Tensor._make_wrapper_subclass(cls, values.size(), *layout, dtype=values.dtype)
        made.held = values
        return made

    def cpu(self, *_, **__):
        waits["copy", _where()] += 1
        return _ToCpu.apply(self)

    def tolist(self):
        waits["tolist", _where()] += 1
        return self.held.tolist()

    def numpy(self, *_, **__):
        raise MixedDevicesError(f"{_where()}: a tensor of {CUDA} has no numpy array")

    __array__ = numpy

    @property
    def data(self):
        return CudaTensor(self.held.detach())

    @data.setter
    def data(self, value):
        if not isinstance(value, CudaTensor):
            raise MixedDevicesError(f"{_where()}: .data of a {CUDA} tensor set to a CPU tensor")
        self.held = value.held

    def __repr__(self, *, tensor_contents=None):
        return f"CudaTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatched(func, args, kwargs or {})


class StandIn(ExitStack):
    """While entered, ``cuda`` is where `CudaTensor` lives.

    Functions that make tensors are replaced by name: a ``TorchFunctionMode`` reaches neither into
    backward passes nor into other threads.
    """

    def __enter__(self):
        super().__enter__()
        for name in _FACTORIES:
            self._replace(torch, name, _factory(name, getattr(torch, name)))
        for name in _COLLECTIVES:
            self._replace(torch.distributed, name, _collective(name))
        self._replace(torch, "sparse_csr_tensor", _sparse(torch.sparse_csr_tensor))
        self._replace(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", _grouped)
        self._replace(torch.Tensor, "to", _to)
        self._replace(torch.Tensor, "pin_memory", _pinned)
        self._replace(torch.cuda, "current_stream", _Stream)
        self._replace(torch.Tensor, "cuda", lambda tensor, *_, **__: _to(tensor, CUDA))
        self._replace(nn.Module, "_apply", _apply)
        # A wrapper cannot be an inference tensor, so that mode becomes no_grad.
        entered = []
        mode = torch.inference_mode

        def enter(_):
            entered.append(torch.no_grad())
            entered[-1].__enter__()

        self._replace(mode, "__enter__", enter)
        self._replace(mode, "__exit__", lambda _, *about: entered.pop().__exit__(*about))
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        return self

    def _replace(self, owner, name, value):
        self.enter_context(mock.patch.object(owner, name, value))


def values_of(part):
    """The CPU tensors inside, at any depth of tuples and dictionaries."""
    return tree_map(lambda t: t.held if isinstance(t, CudaTensor) else t, part)


def _where():
    """The innermost line of the library that is running, for messages."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        place = name.rfind("/distrib/")
        if place >= 0 and "site-packages" not in name:
            return f"{name[place + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def _dispatched(func, args, kwargs):
    name = func._schema.name.split("::")[-1]
    tensors = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, torch.Tensor)]
    on_cuda = [part for part in tensors if isinstance(part, CudaTensor)]
    on_cpu = [part for part in tensors if not isinstance(part, CudaTensor)]
    target = kwargs.get("device")
    if target is not None:
        # C++ takes the wrapper for a CPU tensor, and names its device where only the type changes.
        target = None if on_cuda else torch.device(target)
        kwargs = {**kwargs, "device": torch.device("cpu")}
    is_on_cuda = bool(on_cuda) if target is None else target.type == CUDA.type
    is_copy = name in ("_to_copy", "copy_")
    # Autograd makes zeros for an output without a gradient, on the device that C++ believes in.
    is_zeros_of_autograd = name in ("add", "add_") and not any(t.count_nonzero() for t in on_cpu)
    if on_cuda and on_cpu and not is_copy and not is_zeros_of_autograd:
        _require_mixable(name, func, args, on_cpu)
    if on_cuda:
        _count_waits(name, args, kwargs, is_crossing=is_copy and bool(on_cpu))
    result = func(*values_of(args), **values_of(kwargs))
    if name.startswith("_local_scalar") or not is_on_cuda:
        return result
    return _wrapped(func, args, kwargs, result)


def _count_waits(name, args, kwargs, *, is_crossing):
    is_sized = kwargs.get("output_size") is not None
    masks = []
    if name in _INDEXING:
        is_filled = name != "index" and args[2].numel() == 1  # a kernel without a size
        masks = [] if is_filled else [t for t in args[1] if t is not None and t.dtype == torch.bool]
    if name in _WAITS or masks or is_crossing or (name == "repeat_interleave" and not is_sized):
        waits["mask" if masks else name, _where()] += 1


def _require_mixable(name, func, args, on_cpu):
    """Raise unless CUDA would accept the CPU tensors: indices, and numbers of no dimension."""
    if name in _INDEXING and isinstance(args[0], CudaTensor):
        indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
        if all(t.dim() == 0 or any(t is index for index in indices) for t in on_cpu):
            return
    is_strict = name.startswith("_fused_") or "c10d" in func._schema.name
    if not is_strict and all(t.dim() == 0 for t in on_cpu):
        return
    shapes = [tuple(t.shape) for t in on_cpu]
    raise MixedDevicesError(f"{_where()}: {name} mixes {CUDA} with CPU tensors of {shapes}")


def _wrapped(func, args, kwargs, result):
    """Wrap what an operation returned; what it wrote in place is the argument itself."""
    schema = func._schema
    given = {a.name: value for a, value in zip(schema.arguments, args, strict=False)} | kwargs
    written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    returns_written = [r.alias_info is not None and r.alias_info.is_write for r in schema.returns]
    held = [given[name] for name in written if isinstance(given.get(name), torch.Tensor)]
    if returns_written and all(returns_written) and held:
        return held[0] if len(schema.returns) == 1 else tuple(held)
    return tree_map(
        lambda t: (
            CudaTensor(t) if isinstance(t, torch.Tensor) and not isinstance(t, CudaTensor) else t
        ),
        result,
    )


def _is_cuda(device):
    return device is not None and torch.device(device).type == CUDA.type


def _factory(name, plain):
    def make(*args, **kwargs):
        if name in ("as_tensor", "tensor") and any(isinstance(part, CudaTensor) for part in args):
            return args[0] if name == "as_tensor" else args[0].clone()
        if not _is_cuda(kwargs.get("device")):
            return plain(*args, **kwargs)
        if name in ("as_tensor", "tensor"):  # from pageable memory
            waits[name, _where()] += 1
        return CudaTensor(plain(*values_of(args), **{**kwargs, "device": "cpu"}))

    return make


def _collective(name):
    plain = getattr(torch.distributed, name)

    def call(*args, **kwargs):
        for part in tree_flatten((args, kwargs))[0]:
            is_on_cpu = isinstance(part, torch.Tensor) and not isinstance(part, CudaTensor)
            if is_on_cpu and part.count_nonzero():
                raise MixedDevicesError(f"{_where()}: {name} of a CPU tensor, which NCCL lacks")
        return plain(*values_of(args), **values_of(kwargs))

    return call


def _sparse(plain):
    def make(*args, **kwargs):  # the constructor in C++ reads past the wrapper
        is_on_cuda = {isinstance(part, CudaTensor) for part in args if torch.is_tensor(part)}
        if len(is_on_cuda) > 1:
            raise MixedDevicesError(f"{_where()}: sparse_csr_tensor mixes devices")
        made = plain(*values_of(args), **values_of(kwargs))
        return CudaTensor(made) if is_on_cuda == {True} else made

    return make


def _to(tensor, *rest, copy=False, memory_format=None, **kwargs):
    if rest and isinstance(rest[0], torch.Tensor):
        rest = (rest[0].device, rest[0].dtype, *rest[1:])
    device, dtype, is_asynchronous, _ = torch._C._nn._parse_to(*rest, **kwargs)
    found = tensor
    if device is not None and isinstance(tensor, CudaTensor) != _is_cuda(device):
        is_pinned = getattr(tensor, "is_pinned_here", False)
        is_of_torch = sys._getframe(1).f_code.co_filename.endswith("clip_grad.py")  # asks C++ where
        if not (is_asynchronous and (is_pinned or not _is_cuda(device))) and not is_of_torch:
            waits["copy", _where()] += 1
        found = (_ToCuda if _is_cuda(device) else _ToCpu).apply(tensor)
    if dtype is not None:
        layout = {} if memory_format is None else {"memory_format": memory_format}
        found = _PLAIN_TO(found, dtype, **layout)
    return found.clone() if copy and found is tensor else found


_PLAIN_GROUPED = torch.optim.Optimizer._group_tensors_by_device_and_dtype


def _grouped(lists, with_indices=False):
    """As the optimizer does in C++, where a wrapper is on the CPU."""
    found = _PLAIN_GROUPED(lists, with_indices)
    is_cuda = any(isinstance(part, CudaTensor) for part in lists[0])
    return {(CUDA if is_cuda else device, kind): g for (device, kind), g in found.items()}


def _pinned(tensor):
    found = tensor.clone()
    found.is_pinned_here = True
    return found


class _Stream:
    def synchronize(self):
        waits["synchronize", _where()] += 1


def _apply(module, change, recurse=True):
    """Convert a module. CUDA keeps the parameter objects; here they are new and need their role."""
    roles = {n: p.role for n, p in module._parameters.items() if hasattr(p, "role")}
    _PLAIN_APPLY(module, change, recurse)
    for name, role in roles.items():
        module._parameters[name].role = role
    return module


class _ToCuda(torch.autograd.Function):
    @staticmethod
    def forward(_, tensor):
        return CudaTensor(tensor.detach().clone())

    @staticmethod
    def backward(_, gradient):
        return gradient.held


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(_, tensor):
        return tensor.held.clone()

    @staticmethod
    def backward(_, gradient):
        return CudaTensor(gradient)
