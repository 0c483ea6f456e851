"""An S3 server of the tests' own: moto, in a process of its own, its objects in memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Planted: nothing that taskvec writes or says may have them.
KEY, SECRET, TOKEN = "AKIAPLANTEDKEY", "planted+secret/key", "planted-session-token"
VARIABLES = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": TOKEN,
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


@dataclass(frozen=True)
class S3:
    """The server, and boto3's client of it, which is independent of what is tested."""

    endpoint: str
    client: Any

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which taskvec finds the server."""
        return {**VARIABLES, "AWS_ENDPOINT_URL": self.endpoint}

    def put(self, bucket: str, prefix: str, folder: Path) -> str:
        """A folder as objects; its address."""
        if bucket not in [each["Name"] for each in self.client.list_buckets()["Buckets"]]:
            self.client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder).as_posix()}"
                self.client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
        return f"s3://{bucket}/{prefix}"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def running_s3() -> Iterator[S3]:
    """A server while it runs."""
    import boto3
    from botocore.config import Config

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    server = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        _wait(server, port)
        endpoint = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(proxies={}, s3={"addressing_style": "path"}),
        )
        yield S3(endpoint, client)
    finally:
        server.kill()
        server.wait()


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(1200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert server.poll() is None, "moto has ended"
            time.sleep(0.1)
        else:
            return
    raise AssertionError("moto does not answer")
