"""``taskvec check``: are three checkpoints compatible?"""

from __future__ import annotations

from typing import Any

from taskvec.cli.console import EXIT_FAILED, Console
from taskvec.cli.options import (
    argument,
    force_option,
    reading_options,
    selecting,
    strict_option,
    talk_options,
    variant_option,
    verb,
    worded,
)
from taskvec.compat.findings import findings_summary

EXAMPLES = """
Target, donor and reference, in this order:
  taskvec check qwen-instruct qwen-grpo qwen-sft

In a script: exit code 1 means that they are incompatible:
  taskvec check T D R --quiet || exit 1
"""


@verb("check", examples=EXAMPLES)
@argument("target", metavar="TARGET", help="The model that would receive the vector.")
@argument("donor", metavar="DONOR", help="The fine-tuned model to take the change from.")
@argument("reference", metavar="REFERENCE", help="What the donor was before it was fine-tuned.")
@selecting("Check", "`transfer` keeps the target's bytes of the others")
@worded(
    force_option,
    force="Count the findings named here, errors or with --strict warnings, as warnings: `transfer --force` "
    "goes on in spite of them.",
)
@worded(strict_option, strict="Count warnings as errors, but for those in --force.")
@reading_options
@variant_option
@talk_options("check")
def command(console: Console, target: str, donor: str, reference: str, strict: bool, **options: Any) -> int:
    """Check whether TARGET, DONOR and REFERENCE are compatible.

    Architecture, configuration, tensor names, shapes and types, tied heads and tokenizers are compared from
    headers and small files alone; a sample of the weights then tells whether the donor comes from the
    reference. The findings go to stdout, each with its identifier, which --force takes, and the way out. Exit
    code 1 if one is an error; with --strict a warning is one too, unless --force names it.
    """
    from taskvec.api import check

    findings = check(target, donor, reference, **options)
    failing = ("error", "warning") if strict else ("error",)
    failed = any(each.level in failing and each.id not in options["force"] for each in findings)
    page = console.data()
    console.findings(findings, page)
    verdict = "incompatible" if failed else "compatible"
    page.words(f"{verdict}: {findings_summary(findings)}")
    console.show(page)
    console.emit({"ok": not failed, "findings": [finding.to_dict() for finding in findings]})
    return EXIT_FAILED if failed else 0
