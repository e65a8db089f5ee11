"""An S3 server of this machine, where moto and s3fs are installed."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import fsspec
import pytest


@pytest.fixture(scope="module")
def s3():
    """The URL of a bucket on a local S3 server."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'quantarena[s3]'")
    pytest.importorskip(
        "moto.server", reason="moto is not installed: pip install 'quantarena[dev]'"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        place, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(place, timeout=1)
                break
            except OSError:
                assert time.monotonic() < until, "the server did not start"
                time.sleep(0.1)
        said = {"AWS_ENDPOINT_URL": place, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
                "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
        before = {name: os.environ.get(name) for name in said}
        os.environ.update(said)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # of an earlier module's server
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield "s3://bucket"
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    finally:
        child.kill()
        child.wait()
