"""A real object store's protocol on this machine: moto's S3 server as a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[str]:
    """The URL of an empty bucket, but for what follows the name: `URL.format('a/b')`.

    Args:
        folder: for the server's log.
    """
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (folder / "object-store.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log, stderr=log, env={**os.environ, "AWS_EC2_METADATA_DISABLED": "true"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urlopen(address, timeout=1).close()
                break
            assert server.poll() is None, "the object store ended"
            assert time.monotonic() < deadline, "the object store does not answer"
            time.sleep(0.1)
        client = boto3.client(
            "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="word"
        )
        client.create_bucket(Bucket="bucket")
        yield f"s3://key:word@bucket/{{}}?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
