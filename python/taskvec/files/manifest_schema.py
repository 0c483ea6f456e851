"""The JSON schema of ``taskvec.json``, version 1."""

from __future__ import annotations

from typing import Any

VERSION = 1

_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
_NUMBERS = {"type": "array", "items": {"type": ["number", "null"]}}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
        "additionalProperties": False,
    }


def schema() -> dict[str, Any]:
    """The schema as JSON Schema, draft 2020-12.

    Every member but ``run`` is the same wherever and however often the same merge is made.
    """
    weight_file = _object({"name": _TEXT, "bytes": _COUNT}, {"sha256": _DIGEST, "blake3": _DIGEST})
    source = _object(
        {
            "role": {**_TEXT, "description": "target, donor, reference …"},
            "model": {**_TEXT, "description": "what the user wrote"},
            "fingerprint": {**_DIGEST, "description": "BLAKE3 over the headers of the weight files"},
            "files": {"type": "array", "items": weight_file},
        },
        {
            "repository": _TEXT,
            "revision": {**_TEXT, "description": "the commit on the hub"},
            "content": {
                "type": "string",
                "pattern": "^((blake3|sha256):[0-9a-f]{64}|not-read-whole|not-computed|in-memory)$",
                "description": "of all weight bytes: the digest of the only file, or of the lines that b3sum "
                "(sha256sum) prints for all files in the order of their names; or why there is none",
            },
            "license": {
                "type": "object",
                "additionalProperties": _TEXT,
                "description": "what the model's card says: license, license_name, license_link",
            },
        },
    )
    finding = _object(
        {
            "level": {"enum": ["error", "warning", "note"]},
            "id": _TEXT,
            "subject": _TEXT,
            "expected": _TEXT,
            "found": _TEXT,
            "fix": _TEXT,
            "message": _TEXT,
        }
    )
    survival = _object(
        {
            "fields": {
                "type": "array",
                "items": _TEXT,
                "description": "names of the numbers below, in order; a figure that does not exist is null",
            },
            "total": {"anyOf": [_NUMBERS, {"type": "null"}]},
            "tensors": {"type": "object", "additionalProperties": _NUMBERS},
        },
        {
            "status": {
                "enum": ["measured", "zero", "not-measured", "not-finite"],
                "description": "of the total, which is null where no tensor takes a step from a base",
            },
            "unmeasured": {**_COUNT, "description": "merged tensors that take no step, where others do"},
        },
    )
    vector = _object(
        {
            "format": {"enum": [1, 2], "description": "2 where a tensor has rounded values"},
            "dtype": {"type": ["string", "null"], "description": "null: without loss"},
            "fits": _object(
                {
                    "architecture": {**_DIGEST, "description": "BLAKE3 over kind of model, names and shapes"},
                    "tokenizer": {
                        "anyOf": [_DIGEST, {"type": "null"}],
                        "description": "BLAKE3 over the digests of its files",
                    },
                }
            ),
            "elements": _COUNT,
            "changed": {**_COUNT, "description": "elements that are not zero"},
            "bytes": _COUNT,
            "norm": {"type": ["number", "null"], "description": "null where a value is not finite"},
            "largest": {"type": ["number", "null"]},
            "tensors": {
                "type": "object",
                "additionalProperties": _object(
                    {
                        "shape": {"type": "array", "items": _COUNT},
                        "origin": {**_TEXT, "description": "F32 where a model is stored wider than BF16"},
                        "encoding": {"enum": ["zero", "dense", "mask", "index"]},
                        "dtype": {**_TEXT, "description": "of the values"},
                        "bytes": _COUNT,
                        "file": {"type": ["string", "null"]},
                        "elements": _COUNT,
                        "changed": _COUNT,
                        "norm": {"type": ["number", "null"]},
                        "largest": {"type": ["number", "null"]},
                    },
                    {
                        "exact": {
                            **_COUNT,
                            "description": "elements of which donor and reference are stored too",
                        },
                        "rounded": {
                            "const": True,
                            "description": "differences beyond the type are those of the exact elements",
                        },
                    },
                ),
            },
        }
    )
    share = {"type": "number", "minimum": 0, "maximum": 1}
    curve = {
        "type": "array",
        "items": {"type": "array", "prefixItems": [_COUNT, share], "minItems": 2, "maxItems": 2},
        "description": "rank, and the share of the squared norm that is kept at it",
    }
    adapter = _object(
        {
            "rank": {**_COUNT, "description": "of every module; the largest one where energy decides"},
            "wanted_energy": {"anyOf": [share, {"type": "null"}]},
            "dtype": {**_TEXT, "description": "of the factors"},
            "square": {"type": "number", "description": "the squared norm of all modules with factors"},
            "factors_energy": {**share, "description": "what their factors keep of it"},
            "energy": {**share, "description": "what the adapter keeps of the whole vector"},
            "curve": curve,
            "whole": {"type": "array", "items": _TEXT, "description": "tensors held as in the donor"},
            "left": {
                "type": "object",
                "additionalProperties": _object({"reason": _TEXT, "norm": {"type": ["number", "null"]}}),
            },
            "modules": {
                "type": "object",
                "additionalProperties": _object(
                    {
                        "rank": {**_COUNT, "description": "0: the difference is zero"},
                        "shape": {"type": "array", "items": _COUNT, "description": "outputs, inputs"},
                        "role": {"enum": ["linear", "embedding", "head", "expert"]},
                        "norm": {"type": "number"},
                        "energy": share,
                        "curve": curve,
                        "exact": {"type": "boolean", "description": "whether all of it was decomposed"},
                    }
                ),
            },
        }
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "taskvec.json: what made a folder, and what is in it",
        **_object(
            {
                "schema": {"const": VERSION},
                "kind": {"enum": ["checkpoint", "vector", "adapter"]},
                "engine": _object({"name": {"const": "taskvec"}, "version": _TEXT, "arithmetic": _COUNT}),
                "recipe": {
                    "type": "object",
                    "required": ["verb"],
                    "properties": {"verb": _TEXT},
                    "description": "what was asked for; settings that have their default are left out",
                },
                "command": {
                    "type": ["string", "null"],
                    "description": "the command line that repeats it into a folder OUT",
                },
                "sources": {"type": "array", "items": source, "minItems": 1},
                "files": {
                    "type": "array",
                    "items": _object({"name": _TEXT, "bytes": _COUNT, "blake3": _DIGEST}),
                    "description": "every file of the folder but this one",
                },
                "findings": {"type": "array", "items": finding},
                "survival": survival,
                "non_finite": {
                    "type": "array",
                    "items": {
                        "type": "array",
                        "prefixItems": [_TEXT, _TEXT, _COUNT],
                        "minItems": 3,
                        "maxItems": 3,
                    },
                    "description": "tensor, where in it, how many values that are not finite",
                },
                "run": _object(
                    {
                        "plan": _DIGEST,
                        "finished": {**_TEXT, "description": "UTC, ISO 8601"},
                        "seconds": {"type": "number"},
                        "threads": _COUNT,
                        "cpu_level": _TEXT,
                    },
                    {
                        "inputs": {
                            "type": "array",
                            "items": {"type": "array", "prefixItems": [_TEXT, _TEXT], "minItems": 2},
                            "description": "model, file, and the state that it was in: bytes, times of its "
                            "change in nanoseconds since 1970 (of the content, of the entry), inode; of a "
                            "model at an address bytes and revision",
                        },
                        "id": {**_TEXT, "description": "tells the runs apart that wrote to one address"},
                        "request": {
                            **_DIGEST,
                            "description": "BLAKE3 over a recipe of several documents and the settings",
                        },
                    },
                ),
            },
            {
                "seal": {
                    **_DIGEST,
                    "description": "the last member: BLAKE3 over the bytes before its line's comma",
                },
                "vector": vector,
                "adapter": adapter,
                "tokens": {
                    "type": "object",
                    "description": "of a model that was moved to another tokenizer: where its rows come from",
                },
                "importance": _object(
                    {
                        "documents": {"type": "object", "additionalProperties": _COUNT},
                        "left_out": {**_COUNT, "description": "documents without a reference answer"},
                        "tokens": {**_COUNT, "description": "of the answers"},
                        "tensors": _COUNT,
                        "without_gradient": {
                            "type": "array",
                            "items": _TEXT,
                            "description": "tensors that had no part in the likelihood: zero",
                        },
                        "unknown": {
                            "type": "array",
                            "items": _TEXT,
                            "description": "tensors that the loaded model does not have: not in the map",
                        },
                    }
                ),
                "unweighted": {
                    "type": "object",
                    "additionalProperties": _COUNT,
                    "description": "tensor, and how many of its elements matter to no model and have a plain "
                    "mean",
                },
                "noise": {
                    "type": "object",
                    "description": "how much of a vector of quantised models is rounding, and how much not",
                },
            },
        ),
    }
