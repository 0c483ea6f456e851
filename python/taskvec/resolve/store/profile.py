"""Credentials of AWS that lie in files: the profiles of its command line, single sign-on among them.

obstore itself looks at the environment, and asks the machine in a cloud; boto3 knows the rest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec.errors import HubError
from taskvec.files import look

# Where one of these is set, or given as an option, nothing is looked for.
_ELSEWHERE = (
    "aws_access_key_id",
    "aws_skip_signature",
    "aws_web_identity_token_file",
    "aws_container_credentials_relative_uri",
    "aws_container_credentials_full_uri",
)
_FILES = {"AWS_SHARED_CREDENTIALS_FILE": ".aws/credentials", "AWS_CONFIG_FILE": ".aws/config"}


def of_profile(options: Mapping[str, str]) -> Any:
    """obstore's provider of the credentials of ``AWS_PROFILE`` or the default profile; ``None`` without one.

    Raises
    ------
    HubError
        A profile is asked for that gives no credentials, or boto3 is not found.
    """
    given = {*options, *(f"aws_{key}" for key in options)}
    if any(name in given or os.environ.get(name.upper()) for name in _ELSEWHERE):
        return None
    profile = os.environ.get("AWS_PROFILE")
    if not profile and not any(look.exists(_place(name)) for name in _FILES):
        return None
    try:
        from boto3 import Session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        if not profile:
            return None
        raise HubError(
            f"the profile `{profile}` of AWS cannot be read: that needs the package boto3",
            "install it with `pip install boto3`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ) from None
    try:
        return Boto3CredentialProvider(Session(profile_name=profile))
    except Exception:  # botocore has a class for each way in which a file can be wrong
        if not profile:
            return None
    raise HubError(
        f"the profile `{profile}` of AWS gives no credentials",
        "look at AWS_PROFILE and `aws configure list`; a sign-on may have expired: `aws sso login`",
    )


def _place(variable: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / _FILES[variable])
