"""README.md of an output: a model card that names the models, the arithmetic and what survived of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from taskvec.dtypes import TORCH_NAMES
from taskvec.files.names import RECIPE
from taskvec.regex import regex
from taskvec.report import reproduce
from taskvec.report.licence import licence_lines, words
from taskvec.report.noise import Noise, noise_words
from taskvec.report.places import placeless
from taskvec.report.recipe_file import merge_documents, recipe_text, yaml_of
from taskvec.report.report import ROUNDED_AWAY_LIMIT
from taskvec.report.survival import Survival, unmeasured_words
from taskvec.report.token_words import token_words
from taskvec.settings import format_alpha

# What the hub calls a model; a path begins with a slash, and an address has a colon.
_HUB = regex(r"[\w.-]+(?:/[\w.-]+)?")
_MARKDOWN = regex(r"([\\`*_{}\[\]()#+\-.!|~$:@])")

_CITATION = """\
@misc{zbeeb2025reasoning,
  title         = {Reasoning Vectors: Transferring Chain-of-Thought Capabilities via Task Arithmetic},
  author        = {Zbeeb, Mohammad and Hammoud, Hasan Abed Al Kader and Ghanem, Bernard},
  year          = {2025},
  eprint        = {2509.01363},
  archivePrefix = {arXiv}
}"""

_CONTENT = (
    "The content of a model of one weight file is the digest that `b3sum` (`sha256sum`) prints for it; of "
    "several files it is the digest of the lines that this prints for all of them, in the order of their "
    "names: `b3sum *.safetensors | b3sum`."
)
_CONTROLS = {
    "random": "This is a control: instead of the vector, a random one of the same norm in each tensor.",
    "permute": "This is a control: the values of the vector are shuffled within each tensor.",
}
_DECODE = """\
import json, numpy as np, ml_dtypes
from safetensors.numpy import load_file

stored = load_file("FILE")  # of several files, the one that taskvec.json names for the tensor
facts = json.load(open("taskvec.json"))["vector"]["tensors"]["NAME"]
if facts["encoding"] == "dense":
    vector = stored["NAME"]
else:
    vector = np.zeros(facts["elements"], stored["NAME.values"].dtype)
    if facts["encoding"] == "mask":
        places = np.unpackbits(stored["NAME.mask"], bitorder="little")[: facts["elements"]].astype(bool)
    else:
        places = stored["NAME.indices"]
    vector[places] = stored["NAME.values"]
if facts.get("rounded"):
    donor, reference = (stored[f"NAME.exact.{role}"].astype("f8") for role in ("donor", "reference"))
    vector = vector.ravel().astype("f8")
    vector[stored["NAME.exact.indices"]] = donor - reference
vector = vector.reshape(facts["shape"])"""


def card(facts: Mapping[str, Any], library: str = "transformers") -> bytes:
    """The model card of an output.

    Parameters
    ----------
    facts : mapping
        What :func:`taskvec.report.manifest.provenance` says of it.
    library : str
        What loads it.

    Returns
    -------
    bytes
        Markdown with YAML front matter, UTF-8. Names from files and from the user are escaped.
    """
    facts = placeless(facts)
    recipe = facts["recipe"]
    is_vector = recipe["verb"] in ("transfer", "apply", "combine")
    is_text = is_vector or recipe["verb"] in ("average", "convert", "tokens")
    return text(
        _front_matter(
            facts, ["merge", "task-vector", "taskvec"] if is_vector else ["merge", "taskvec"], library
        ),
        f"# {_title(facts)}",
        f"Made by {_means(recipe)}, without training, with taskvec {facts['engine']['version']}:",
        fenced(formula(recipe), "text" if is_text else "yaml"),
        recipe_section(recipe) if is_text else "",
        _CONTROLS.get(recipe.get("control", ""), ""),
        model_table(facts["sources"]),
        _tokens(facts["tokens"]) if "tokens" in facts else _survival(facts["survival"]),
        _noise(facts.get("noise")),
        findings_section(facts["findings"]),
        *ways(recipe),
        "`taskvec verify` compares the files of this folder with the digests in `taskvec.json`, which also "
        "has the figures of every tensor.",
        *(_citation() if is_vector else ()),
    )


def vector_card(facts: Mapping[str, Any]) -> bytes:
    """The README.md of a saved vector; takes and gives what :func:`card` does."""
    facts = placeless(facts)
    vector, (donor, reference) = facts["vector"], facts["sources"]
    changed = vector["changed"] / vector["elements"] if vector["elements"] else 0.0
    figures = {
        "elements": f"{vector['elements']:,}",
        "elements that are not zero": f"{changed:.2%}",
        "L2 norm": _figure(vector["norm"]),
        "bytes of the values": f"{vector['bytes']:,}",
        "type": f"{escape(vector['dtype'])}, with loss"
        if vector["dtype"]
        else "the smallest without loss, tensor by tensor",
    }
    return text(
        _front_matter(facts, ["task-vector", "taskvec"]),
        f"# Task vector {escape(name_of(donor))} - {escape(name_of(reference))}",
        f"The change from the reference to the donor, saved with taskvec "
        f"{facts['engine']['version']}. It is not a model: it is added to one that has the same tensors and "
        "the same tokenizer as the reference.",
        model_table(facts["sources"]),
        table(figures),
        _noise(facts.get("noise")),
        "## How to use it",
        fenced("taskvec apply TARGET THIS_FOLDER -o OUT --alpha 1", "sh"),
        "## How to read it without taskvec",
        "A tensor `NAME` is stored as `NAME`, as `NAME.mask` and `NAME.values`, as `NAME.indices` and "
        "`NAME.values`, or, if it is zero, not at all:",
        fenced(_DECODE, "python"),
        "`NAME.exact.indices`, `NAME.exact.donor` and `NAME.exact.reference`, where there are any, hold "
        "the elements whose difference was rounded, lost the sign of a zero, or is beyond the type of the "
        "values; only for the last, of a tensor that is `rounded`, does the vector need them.",
        findings_section(facts["findings"]),
        recipe_section(facts["recipe"]),
        *ways(facts["recipe"]),
        *_citation(),
    )


def formula(recipe: Mapping[str, Any]) -> str:
    """The arithmetic with its numbers; of a merge, its recipe as YAML (of which JSON is a part)."""
    if recipe["verb"] == "convert":
        return f"model, as {_form(recipe)}"
    if recipe["verb"] == "tokens":
        k = f", k = {recipe['k']}" if "k" in recipe else ""
        how = f"rows of other tokens by {recipe['method']}{k}"
        return f"target, with the tokenizer of model: {how}"
    if recipe["verb"] == "average":
        rows = zip(recipe["weights"], recipe["checkpoints"], strict=True)
        return "  " + "\n+ ".join(f"{weight:.6g} * {name}" for weight, name in rows)
    if recipe["verb"] == "transfer":
        return f"target + {_factor(recipe['alpha'])} * (donor - reference)"
    if recipe["verb"] == "apply":
        names = (
            ["vector"]
            if len(recipe["vectors"]) == 1
            else [f"vector {number}" for number in range(1, len(recipe["vectors"]) + 1)]
        )
        terms = list(zip(recipe["weights"], names, strict=True))
    elif recipe["verb"] == "combine":
        terms = [
            (term["weight"], f"vector {n}" if "vector" in term else f"(donor {n} - reference {n})")
            for n, term in enumerate(recipe["terms"], 1)
        ]
    else:
        return _yaml(recipe).rstrip("\n")
    if len(terms) == 1:
        return f"target + {_factor(terms[0][0] * recipe['alpha'])} * {terms[0][1]}"
    total = " + ".join(f"{_factor(weight)} * {name}" for weight, name in terms)
    return (
        f"target + {total}" if recipe["alpha"] == 1.0 else f"target + {_factor(recipe['alpha'])} * ({total})"
    )


def recipe_section(recipe: Mapping[str, Any]) -> str:
    """What was asked for, as YAML; ``taskvec_recipe.yaml`` has it with the paths that were given."""
    return f"## Recipe\n\n{fenced(recipe_text(recipe).rstrip(chr(10)), 'yaml')}"


def _yaml(recipe: Mapping[str, Any]) -> str:
    """The documents of a recipe, which can be run from the card."""
    documents = merge_documents(recipe) if "recipe" in recipe else [dict(recipe)]
    return yaml_of(documents)


def text(*sections: str) -> bytes:
    return ("\n\n".join(section for section in sections if section) + "\n").encode("utf-8", "replace")


def _citation() -> list[str]:
    return ["## Citation", fenced(_CITATION, "bibtex")]


def ways(recipe: Mapping[str, Any]) -> list[str]:
    ways = [(reproduce.command(recipe), "sh"), (reproduce.python(recipe), "python")]
    blocks = [fenced(way, language) for way, language in ways if way is not None]
    if not blocks:
        return []
    saved = [f"With `{RECIPE}` of this folder:"] if recipe["verb"] in ("merge", "moe") else []
    return ["## How to make it again", *saved, *blocks]


def escape(name: str) -> str:
    """A name from elsewhere as Markdown text: it is shown, and does nothing."""
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return _MARKDOWN.sub(r"\\\1", visible.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def _factor(alpha: float) -> str:
    text = format_alpha(alpha)
    return f"({text})" if text.startswith("-") else text


def _title(facts: Mapping[str, Any]) -> str:
    recipe, base = facts["recipe"], escape(name_of(facts["sources"][0]))
    if recipe["verb"] == "moe":
        return f"{base} and {len(recipe['recipe'][0]['experts'])} experts as {escape(recipe['layout'])}"
    if recipe["verb"] == "convert":
        return f"{base} as {_form(recipe)}"
    if recipe["verb"] == "tokens":
        return f"{base} with the tokenizer of {escape(name_of(facts['sources'][1]))}"
    vectors = {
        "transfer": 1,
        "apply": len(recipe.get("vectors", ())),
        "combine": len(recipe.get("terms", ())),
    }
    count = vectors.get(recipe["verb"])
    if recipe["verb"] == "average":
        return f"{base}, an average of {len(recipe['checkpoints'])} checkpoints"
    if count is None:
        return f"{base}, merged"
    return f"{base} with {'a task vector' if count == 1 else 'task vectors'}"


def _means(recipe: Mapping[str, Any]) -> str:
    if recipe["verb"] == "moe":
        return "putting MLPs of dense models side by side"
    if recipe["verb"] == "convert":
        return "writing the weights in another form"
    return "moving it to another tokenizer" if recipe["verb"] == "tokens" else "arithmetic on weights"


def _tokens(tokens: Mapping[str, Any]) -> str:
    lines = "\n".join(f"- {escape(words)}" for words in token_words(tokens))
    return f"## Where the rows of the tokens come from\n\n{lines}"


def _form(recipe: Mapping[str, Any]) -> str:
    word = recipe.get("out_dtype")
    return "plain weights" if word is None else escape(str(TORCH_NAMES.get(word, word)))


def name_of(source: Mapping[str, Any]) -> str:
    """A hub name or an address as it is; of a path only its last part, without the machine it lay on."""
    model, repository = source["model"], source.get("repository", "")
    if "://" in repository or is_on_hub(source):
        return repository
    return model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] or model


def is_on_hub(source: Mapping[str, Any]) -> bool:
    """Whether a model lies on the hub: other places have their address, or their path, as repository."""
    return _HUB.fullmatch(source.get("repository", "")) is not None


def _front_matter(facts: Mapping[str, Any], tags: Sequence[str], library: str = "") -> str:
    merged = [s for s in facts["sources"] if not s["role"].startswith("importance of ")]
    repositories = list(dict.fromkeys(s["repository"] for s in merged if is_on_hub(s)))
    lines = ["---"]
    if repositories:
        # JSON strings are YAML strings, whatever they hold.
        lines += [
            "base_model:",
            *(f"- {json.dumps(name)}" for name in repositories),
            "base_model_relation: merge",
        ]
    lines += licence_lines(merged)
    if facts["kind"] == "checkpoint":
        lines.append(f"library_name: {library}")
    lines += ["tags:", *(f"- {tag}" for tag in tags), "---"]
    return "\n".join(lines)


def model_table(sources: Sequence[Mapping[str, Any]]) -> str:
    rows = ["| role | model | revision | licence | content |", "|---|---|---|---|---|"]
    for source in sources:
        name = escape(name_of(source))
        if is_on_hub(source):
            name = f"[{name}](https://huggingface.co/{source['repository']})"
        revision = f"`{source['revision']}`" if source.get("revision") else "local"
        licence = escape(words(source.get("license")))
        content = source.get("content", "not-computed")
        shown = f"`{content}`" if ":" in content else content.replace("-", " ")
        rows.append(f"| {escape(source['role'])} | {name} | {revision} | {licence} | {shown} |")
    is_known = any(":" in source.get("content", "") for source in sources)
    return "\n".join(rows) + (f"\n\n{_CONTENT}" if is_known else "")


def _survival(survival: Mapping[str, Any]) -> str:
    title = "## What survived rounding\n\n"
    if survival["total"] is None:
        return f"{title}Not measured: no tensor takes a step from a base, so there is none to compare with."
    row = Survival(*survival["total"])
    if row.format_error:
        moved = f"moved the weights by {row.format_error:.2%} of their norm."
        return f"{title}There is no step. The output's format {moved}"
    unmeasured = survival.get("unmeasured", 0)
    rest = f"\n\n{unmeasured_words(unmeasured).capitalize()}." if unmeasured else ""
    if row.status == "zero":
        whose = (
            "the tensors that take one are the target's"
            if unmeasured
            else "the output has the target's weights"
        )
        return f"{title}The step is zero: {whose}.{rest}"
    remark = ""
    if row.status == "not-finite":
        remark = "Values of the step are NaN or infinite: what is left blank has no value for that reason."
    elif row.rounded_away_share > ROUNDED_AWAY_LIMIT:
        remark = (
            "A good part of the step was lost in rounding: a wider type or stochastic rounding keeps more."
        )
    return title + table(_survival_figures(row)) + (f"\n\n{remark}" if remark else "") + rest


def _noise(noise: Mapping[str, Any] | None) -> str:
    if noise is None:
        return ""
    figures: dict[str, Any] = {field: noise.get(field) for field in Noise._fields}
    words = noise_words(Noise(**figures))
    return "## How much of the vector is signal\n\n" + escape("; ".join(words)) + "."


def _survival_figures(row: Survival) -> dict[str, str]:
    return {
        "elements in which the vector is not zero": f"{row.changed_share:.2%}",
        "of these, rounded away": f"{row.rounded_away_share:.2%}",
        "length of the requested update": _figure(row.step_norm),
        "length of the realised update": _figure(row.moved_norm),
        "cosine of the two": _figure(row.cosine),
        "relative error of the step": _figure(row.relative_error),
    }


def table(figures: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in figures.items())])


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def findings_section(findings: Sequence[Mapping[str, Any]]) -> str:
    shown = [finding for finding in findings if finding["level"] != "note"]
    if not shown:
        return ""
    lines = [f"- {escape(finding['id'])}: {escape(finding['message'])}" for finding in shown]
    return "\n".join(["## Findings", "", *lines])


def fenced(text: str, language: str) -> str:
    """A code block that nothing in the text can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
