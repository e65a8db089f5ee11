"""The states of torch, which is imported by the function that lists them."""

from typing import Any

from quantarena.bench.process_state.states import State, attribute

_HOOKS = (
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_buffer_registration_hooks",
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_module_registration_hooks",
    "_global_parameter_registration_hooks",
)
_PRECISIONS = (  # from the whole to its parts, as a part takes over what is said of the whole
    "",
    "mkldnn",
    "cudnn",
    "mkldnn.matmul",
    "mkldnn.conv",
    "mkldnn.rnn",
    "cuda.matmul",
    "cudnn.conv",
    "cudnn.rnn",
)


def torch_states() -> list[State]:
    """The states. Torch's old names of precisions come before its new ones, which they move."""
    import torch

    def deterministic() -> tuple[bool, bool]:
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        return torch.are_deterministic_algorithms_enabled(), warn_only

    def put_device(device: torch.device) -> None:
        # None is the usual state; naming the CPU would make every call of torch slower.
        torch.set_default_device(None if device.type == "cpu" else device)

    backends, sharing = torch.backends, torch.multiprocessing
    return [
        State("the number of torch's inter-op threads", torch.get_num_interop_threads),
        State("torch's inference mode", torch.is_inference_mode_enabled),
        State("torch's threads", torch.get_num_threads, torch.set_num_threads),
        State("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        State("torch's default device", torch.get_default_device, put_device),
        State("torch's gradients", torch.is_grad_enabled, torch.set_grad_enabled),
        State(
            "torch's deterministic algorithms",
            deterministic,
            lambda pair: torch.use_deterministic_algorithms(pair[0], warn_only=pair[1]),
        ),
        State("torch's denormal numbers", _flushes_denormals, torch.set_flush_denormal),
        State(
            "torch's detection of anomalies",
            torch.is_anomaly_enabled,
            torch.autograd.set_detect_anomaly,
        ),
        State(
            "torch's autocast",
            lambda: torch.is_autocast_enabled("cpu"),
            lambda value: torch.set_autocast_enabled("cpu", value),
        ),
        State(
            "torch's precision of products",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        attribute("torch's TF32 of cuDNN", backends.cudnn, "allow_tf32"),
        *_precisions(backends),
        attribute("torch's oneDNN", backends.mkldnn, "enabled"),
        attribute("torch's cuDNN", backends.cudnn, "enabled"),
        attribute("torch's benchmarks of cuDNN", backends.cudnn, "benchmark"),
        attribute("torch's deterministic cuDNN", backends.cudnn, "deterministic"),
        State(
            "torch's flash attention",
            backends.cuda.flash_sdp_enabled,
            backends.cuda.enable_flash_sdp,
        ),
        State(
            "torch's plain attention",
            backends.cuda.math_sdp_enabled,
            backends.cuda.enable_math_sdp,
        ),
        State(
            "torch's sharing of tensors",
            sharing.get_sharing_strategy,
            sharing.set_sharing_strategy,
        ),
        State("torch's hooks on all modules", _hooks, _put_hooks),
        State("torch's random state", torch.get_rng_state, torch.set_rng_state, torch.equal),
    ]


def _precisions(backends: Any) -> list[State]:
    """``fp32_precision`` of each backend and operation that this torch has."""
    states = []
    for path in _PRECISIONS:
        owner = backends
        for part in path.split(".") if path else ():
            owner = getattr(owner, part, None)
        where = ".".join(part for part in ("torch.backends", path, "fp32_precision") if part)
        if owner is not None:  # one that has no such attribute is unreadable, and left alone
            states.append(attribute(where, owner, "fp32_precision"))
    return states


def _flushes_denormals() -> bool:
    """Whether torch's arithmetic rounds denormal numbers to 0, which it does not say itself."""
    import torch

    return bool((torch.full((1,), 1e-38, dtype=torch.float32, device="cpu") * 0.5 == 0).item())


def _hooks() -> dict[str, dict[int, Any]]:
    """The hooks that torch calls for every module, by the name of their list."""
    from torch.nn.modules import module

    return {name: dict(getattr(module, name)) for name in _HOOKS if hasattr(module, name)}


def _put_hooks(before: dict[str, dict[int, Any]]) -> None:
    from torch.nn.modules import module

    for name, hooks in before.items():
        present = getattr(module, name)
        if dict(present) != hooks:
            present.clear()
            present.update(hooks)
