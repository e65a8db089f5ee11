"""Starting a private, silent Ray for one run."""

import contextlib
import logging
import os
import signal
import warnings
from collections.abc import Iterator
from typing import Any

from quantarena.bench.errors import RunStopped, one_line

OBJECT_STORE_BYTES = 200 * 1024 * 1024
PRIVATE = "quantarena-private"
"""A resource by which other runs on this machine know that a Ray is no cluster to join."""
_NEEDED = {"raylet", "gcs_server"}
"""The processes without which Ray starts and ends no task."""
_QUIET = {
    # Ray runs workers at niceness 15 otherwise, which starves them beside anything else.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    # Its handler would turn a SIGTERM of the driver into an abort with a stack trace.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
}


def start_ray(workers: int) -> Any:
    """Start a private Ray on this machine that prints nothing and ends with this process.

    Args:
        workers: CPUs that it offers, one a worker.

    Returns:
        The module ``ray``.

    Raises:
        RunStopped: Ray did not start, twice.
    """
    with silently():
        try:
            import ray

            try:
                _init(ray, workers)
            except Exception:  # it gives up after half a minute, which a busy machine may need
                ray.shutdown()
                _init(ray, workers)
        except Exception as error:
            raise RunStopped(
                f"Ray did not start its workers ({one_line(error)}): run the same command again "
                "when less runs on this machine, or with --executor local"
            ) from error
    return without_logs(ray)


@contextlib.contextmanager
def silently() -> Iterator[None]:
    """What Ray sets in this process while it starts is undone: warnings, the handler of SIGTERM."""
    os.environ.update(_QUIET)
    on_terminate = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    with contextlib.suppress(ValueError):
        # Ray installs a handler of its own; the command line has one that ends a run in order.
        signal.signal(signal.SIGTERM, on_terminate)


def without_logs(ray: Any) -> Any:
    """The module, which from now on prints nothing about workers that die."""
    with contextlib.suppress(AttributeError):
        # Ray prints a paragraph on stdout for each worker that dies; its cell's row says why.
        ray._private.worker._worker_logs_enabled = False
    return ray


def require_alive(ray: Any) -> None:
    """Check that Ray's own processes on this machine live.

    Raises:
        RunStopped: one is dead. Ray would wait for it, and each new worker with it.
    """
    node = getattr(getattr(ray._private, "worker", None), "_global_node", None)
    dead = [] if node is None else node.dead_processes()
    names = {str(kind) for kind, _ in dead} & _NEEDED
    if names:
        raise RunStopped(
            f"Ray's process {min(names)} died (killed, or out of memory): finished cells are "
            "kept; run the same command again to continue"
        )


def _init(ray: Any, workers: int) -> None:
    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
        object_store_memory=OBJECT_STORE_BYTES,
        resources={PRIVATE: 1},
    )
