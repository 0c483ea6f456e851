"""obstore's client of an address: options, time limits and repetitions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from taskvec.errors import HubError
from taskvec.extras import install
from taskvec.resolve.store.address import WEB, Address
from taskvec.resolve.store.errors import not_set_up
from taskvec.resolve.store.profile import of_profile

# A stalled connection ends after a time without a byte; a slow one may take its time.
LIMITS = {"connect_timeout": "10s", "read_timeout": "30s", "timeout": "15m"}
# With waits between them of at most 1, 2, 4, 8 and 15 s, drawn at random below that.
REPEAT = {
    "max_retries": 5,
    "retry_timeout": timedelta(minutes=4),
    "backoff": {"init_backoff": timedelta(seconds=1), "max_backoff": timedelta(seconds=15), "base": 2},
}
# Options of connections, which every store has; the others are of one kind of store.
CONNECTION = frozenset(
    [
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "http1_only",
        "http2_keep_alive_interval",
        "http2_keep_alive_timeout",
        "http2_keep_alive_while_idle",
        "http2_only",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "proxy_ca_certificate",
        "proxy_excludes",
        "proxy_url",
        "randomize_addresses",
        "read_timeout",
        "root_certificate",
        "timeout",
        "user_agent",
    ]
)
_OWN = {"s3": "aws_", "gs": "google_", "az": "azure_"}


def connect(address: Address, options: Mapping[str, str]) -> Any:
    """The client of an address, whose paths are relative to the bucket or the web server.

    Nothing is asked for yet.

    Raises
    ------
    HubError
        obstore is not installed.
    obstore.exceptions.BaseError
        An option is not known, or not valid.
    """
    try:
        import obstore.store as stores
    except ImportError:
        raise HubError(
            f"`{address}` cannot be reached: addresses of {address.scheme}:// need the package obstore",
            f"install it with `{install('cloud')}`",
        ) from None
    client: dict[str, Any] = {**LIMITS, "user_agent": "taskvec", **_connection(address.scheme, options)}
    common: dict[str, Any] = {"client_options": client, "retry_config": REPEAT}
    try:
        if address.scheme in WEB:
            client["allow_http"] = address.scheme == "http"
            return stores.HTTPStore.from_url(f"{address.scheme}://{address.place}", **common)
        if address.scheme == "s3" and (provider := of_profile(options)) is not None:
            common["credential_provider"] = provider
        make = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}[address.scheme]
        return make(address.place, config=_config(address.scheme, options), **common)
    except (TypeError, ValueError):  # a certificate that is not one, for example; the text may be a secret
        raise not_set_up(f"`{address}`") from None


def _connection(scheme: str, options: Mapping[str, str]) -> dict[str, str]:
    """The options of the connection. Where some are given, obstore passes over those of the environment."""
    prefix = _OWN.get(scheme, "")
    variables = {key: os.environ.get(f"{prefix}{key}".upper(), "") for key in CONNECTION if prefix}
    return {
        key: value
        for key in sorted(CONNECTION)
        if (value := options.get(key) or options.get(prefix + key) or variables.get(key))
    }


def _config(scheme: str, options: Mapping[str, str]) -> dict[str, str]:
    """The options that are meant for this kind of store."""
    others = tuple(prefix for kind, prefix in _OWN.items() if kind != scheme)
    own = {key: key.removeprefix(_OWN[scheme]) for key in options if not key.startswith(others)}
    return {key: options[key] for key, plain in own.items() if plain not in CONNECTION}
