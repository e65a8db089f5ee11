"""Joining a Ray cluster that runs already."""

import logging
import re
import socket
from collections.abc import Mapping
from typing import Any

from quantarena.bench.errors import UserError, first_line
from quantarena.bench.run.ray_session import PRIVATE, silently, without_logs

AUTO = "auto"
_CONNECT_SECONDS = 10.0
_PLACE = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):(\d{1,5})")


def checked_address(text: str) -> str:
    """An address that a run can join.

    Raises:
        UserError: it is none, or one of Ray's client, which cannot tell a lost line from a death.
    """
    if text.startswith("ray://"):
        raise UserError(
            f"--address {text}: Ray's client ends all workers of a run when its line is lost, and "
            "says nothing of nodes that die: run the command on a machine of the cluster, with "
            "--address auto or HOST:PORT (the port of 'ray start --head', 6379 by default)"
        )
    found = _PLACE.fullmatch(text)
    if text != AUTO and (found is None or not 0 < int(found[2]) < 65536):
        raise UserError(f"--address {text}: write auto, or HOST:PORT such as 10.0.0.1:6379")
    return text


def _require_answer(address: str) -> None:
    """See that somebody listens at the cluster's head; Ray itself tries for minutes.

    Raises:
        OSError: nobody does.
    """
    if address == AUTO:
        from ray._private.services import canonicalize_bootstrap_address

        address = canonicalize_bootstrap_address(AUTO)
    found = _PLACE.fullmatch(address or "")
    if found is None:
        raise OSError("no cluster runs on this machine")
    with socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=_CONNECT_SECONDS):
        pass


def join_ray(address: str, environment: Mapping[str, Any]) -> Any:
    """Join a cluster that runs, from one of its machines; leaving it ends this run's workers.

    Args:
        address: ``auto``, or HOST:PORT of the cluster's head.
        environment: Ray's description of what workers need, see ``runtime_env``.

    Returns:
        The module ``ray``.

    Raises:
        UserError: there is no such cluster, or this machine is no part of it.
    """
    with silently():
        import ray

        try:
            _require_answer(address)
            ray.init(
                address=address,
                runtime_env=dict(environment),
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
        except Exception as error:
            raise UserError(
                f"--address {address}: Ray did not let this process join ({first_line(error)}); "
                "start it with 'RAY_worker_niceness=0 ray start --head', and on every other "
                "machine, this one too, with 'ray start --address HOST:PORT'"
            ) from error
        if PRIVATE in ray.cluster_resources():
            ray.shutdown()
            raise UserError(
                f"--address {address}: the Ray that runs there is private to another run of "
                "quantarena: start a cluster with 'ray start --head', and give its HOST:PORT"
            )
    return without_logs(ray)
