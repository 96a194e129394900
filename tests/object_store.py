"""A real object store's protocol on this machine: moto's S3 server as a process of its own, one for all tests."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from urllib.request import urlopen


@cache
def _server() -> str:
    """The address of a server that runs until this process ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "AWS_EC2_METADATA_DISABLED": "true"},
    )  # fmt: skip
    atexit.register(server.kill)
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            urlopen(f"http://{address}", timeout=1).close()
            return address
        assert server.poll() is None, "the object store ended"
        assert time.monotonic() < deadline, "the object store does not answer"
        time.sleep(0.1)


@contextlib.contextmanager
def object_store() -> Iterator[str]:
    """The URL of an empty bucket, but for what follows the name: `URL.format('a/b')`; afterwards nothing is there."""
    import boto3

    address = _server()
    client = boto3.client("s3", endpoint_url=f"http://{address}", region_name="us-east-1", aws_access_key_id="key",
                          aws_secret_access_key="word")  # fmt: skip
    client.create_bucket(Bucket="bucket")
    try:
        yield f"s3://key:word@bucket/{{}}?scheme=http&region=us-east-1&endpoint_override={address}"
    finally:
        urlopen(f"http://{address}/moto-api/reset", data=b"").close()
