"""Uploads that a killed process had begun: the store keeps their parts until someone gives them up.

obstore cannot list them; boto3 can, where it is there. A rule of the bucket does it elsewhere, as the
documentation says.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from typing import Any

from taskvec.resolve import storage
from taskvec.resolve.store.write import StorePlace

log = logging.getLogger(__name__)


def abort_uploads(place: StorePlace, names: Collection[str] | None = None) -> int:
    """Give up unfinished uploads below an address, all or those of some files, where that can be done.

    Returns
    -------
    int
        How many there were.
    """
    if place.where.scheme != "s3":
        return 0
    try:
        client, count = _client(place), 0
        prefix = f"{place.where.path}/" if place.where.path else ""
        for page in client.get_paginator("list_multipart_uploads").paginate(
            Bucket=place.where.place, Prefix=prefix
        ):
            for upload in page.get("Uploads", ()):
                if names is not None and upload["Key"].removeprefix(prefix) not in names:
                    continue
                client.abort_multipart_upload(
                    Bucket=place.where.place, Key=upload["Key"], UploadId=upload["UploadId"]
                )
                count += 1
    except Exception as error:  # boto3 is not found, or these credentials may not: nothing depends on it
        log.info("unfinished uploads are left to the rules of the bucket: %s", type(error).__name__)
        return 0
    return count


def _client(place: StorePlace) -> Any:
    import boto3
    from botocore.config import Config

    config, own = place.client.config, storage.current().options
    names = {
        "endpoint_url": ("endpoint", "endpoint_url"),
        "region_name": ("region", "default_region"),
        "aws_access_key_id": ("access_key_id",),
        "aws_secret_access_key": ("secret_access_key",),
        "aws_session_token": ("session_token", "token"),
    }
    options = {key.removeprefix("aws_"): value for key, value in {**own, **config}.items()}
    found = {key: next(filter(None, map(options.get, each)), None) for key, each in names.items()}
    found["region_name"] = found["region_name"] or os.environ.get("AWS_REGION")
    limits = Config(connect_timeout=10, read_timeout=30, retries={"max_attempts": 2})
    return boto3.client("s3", config=limits, **{key: value for key, value in found.items() if value})
