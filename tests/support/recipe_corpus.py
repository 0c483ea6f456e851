"""Recipes with one mistake each (what is said of it, and the way out), and unusual ones without."""

from __future__ import annotations

from support.recipes import LINEAR, SLICE, TASK, TIES

MISTAKES = {
    "unknown key": (
        TIES + "models:\n  - model: b\n    paramters: {weight: 1}\n",
        "recipe:5: unknown key `paramters` in `models.0`",
        "did you mean `parameters`?",
    ),
    "parameter at the top": (
        TIES + "density: 0.5\nmodels: [{model: b}]\n",
        "recipe:3: unknown key `density`",
        "it belongs under `parameters`",
    ),
    "unknown parameter": (
        TIES + "models: [{model: b, parameters: {weight: 1}}]\nparameters:\n  lamda: 2\n",
        "recipe:5: `lamda` is not a parameter of `ties`",
        "did you mean `lambda`?",
    ),
    "unknown method": (
        TIES.replace("ties", "tise") + "models: [{model: b}]\n",
        "recipe:1: unknown merge method `tise`",
        "did you mean `ties`?",
    ),
    "method with a hyphen": (
        TIES.replace("ties", "DARE-TIES") + "models: [{model: b}]\n",
        "recipe:1: unknown merge method `DARE-TIES`",
        "did you mean `dare_ties`?",
    ),
    "no method": ("models: [{model: b}]\n", "recipe:1: `merge_method` is missing", "`taskvec methods`"),
    "nothing to merge": ("merge_method: linear\n", "recipe:1: nothing to merge", "exactly one of"),
    "two ways at once": (
        LINEAR + "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n",
        "recipe:4: `models` and `slices` together",
        "exactly one of",
    ),
    "no models": (TIES + "models: []\n", "recipe:3: `models` is empty", "name at least one"),
    "models is text": (TIES + "models: b\n", "recipe:3: `models` is a list, found the text `b`", ""),
    "model is a number": (
        TIES + "models: [{model: 12}]\n",
        "recipe:3: `models.0.model`: the number `12` where a model belongs",
        "org/name",
    ),
    "two adapters": (
        TIES + "models: [{model: b+c+d}]\n",
        "recipe:3: `models.0.model`: `b+c+d`",
        "one adapter",
    ),
    "two revisions": (TIES + "models: [{model: b@c@d}]\n", "more than one `@`", "org/name@revision"),
    "architecture by hand": (
        TIES + "models: [{model: {model: b, override_architecture: X}}]\n",
        "`override_architecture` cannot be honoured",
        "remove it",
    ),
    "model and vector": (
        TIES + "models:\n  - {model: b, vector: c}\n",
        "recipe:4: an input is a `model` or a `vector`",
        "",
    ),
    "vector relative to": (
        TIES + "models:\n  - {vector: b, relative_to: c}\n",
        "recipe:4: a `vector` is a difference already",
        "remove `relative_to`",
    ),
    "relative to itself": (
        TIES + "models: [{model: b, relative_to: b, parameters: {weight: 1}}]\n",
        "recipe:3: `b` relative to itself is a vector of zeros",
        "trained from",
    ),
    "relative in a method of whole models": (
        LINEAR.replace("model: a", "model: a, relative_to: b"),
        "recipe:3: `relative_to` is for methods that add to a base; `linear` takes whole models",
        "task_arithmetic",
    ),
    "no layer range": (
        "merge_method: passthrough\nslices:\n  - sources:\n      - model: b\n",
        "recipe:4: `layer_range` is missing in `slices.0.sources.0`",
        "layer_range: [0, 24]",
    ),
    "half a layer": (
        SLICE.replace("4]", "1.5]"),
        "recipe:3: `slices.0.sources.0.layer_range`: a layer is a whole number, found the number `1.5`",
        "[0, 24]",
    ),
    "backwards": (SLICE.replace("[0, 4]", "[4, 2]"), "layer range [4, 2] runs backwards", "[0, 24]"),
    "unequal slices": (
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n  - sources:\n"
        "      - {model: a, layer_range: [0, 4]}\n      - {model: b, layer_range: [0, 3]}\n",
        "recipe:6: 3 layers here, and 4 in the first source of this slice",
        "equally many",
    ),
    "base outside of a slice": (
        "merge_method: ties\nbase_model: b\nparameters: {weight: 1}\nslices:\n"
        "  - sources:\n      - {model: a, layer_range: [0, 4]}\n",
        "recipe:5: the base `b` is not among the sources of this slice",
        "it needs no parameters",
    ),
    "no base": (
        "merge_method: ties\nmodels: [{model: b, parameters: {weight: 1}}]\n",
        "recipe:1: `ties` needs a base model",
        "base_model",
    ),
    "only the base": (
        TIES + "models: [{model: a}]\n",
        "recipe:3: `ties` takes 1 or more models besides the base, found 0",
        "",
    ),
    "three for slerp": (
        "merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nmodels: [{model: b}, {model: c}]\n",
        "`slerp` takes 1 model besides the base, found 2",
        "`multislerp` and `karcher`",
    ),
    "two for passthrough": (
        "merge_method: passthrough\nbase_model: a\nmodels: [{model: b}]\n",
        "`passthrough` takes 1 model, found 2",
        "remove `base_model`",
    ),
    "one for model stock": (
        "merge_method: model_stock\nbase_model: a\nmodels: [{model: b}]\n",
        "`model_stock` takes 2 or more models besides the base, found 1",
        "",
    ),
    "twice": (
        LINEAR.replace("[{model: a}]", "\n  - model: a\n  - model: a"),
        "recipe:5: `a` is listed twice, first at `models.0`",
        "the sum of the weights",
    ),
    "no weight": (
        "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 1}}\n  - model: b\n",
        "recipe:4: `b` has no `weight`, which `linear` needs",
        "parameters: {weight: 1.0}",
    ),
    "base without weight": (
        "merge_method: linear\nbase_model: c\nmodels: [{model: a, parameters: {weight: 1}}]\n",
        "recipe:2: the base model is one more input of `linear`, and has no `weight`",
        "remove `base_model`",
    ),
    "no t": (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\n",
        "recipe:1: `slerp` needs the parameter `t`",
        "parameters: {t: 0.5}",
    ),
    "negative density": (
        TIES + "models:\n  - model: b\n    parameters:\n      weight: 1\n      density: -0.1\n",
        "recipe:7: `density` is a number from 0 to 1, found -0.1",
        "",
    ),
    "density in per cent": (
        TIES + "models: [{model: b, parameters: {weight: 1, density: 50}}]\n",
        "`density` is a number from 0 to 1, found 50",
        "a share of 50 % is written 0.5",
    ),
    "deep in a filter": (
        TIES
        + "parameters:\n  weight: 1\n  density:\n    - filter: mlp\n      value: [0.1, 2]\n    - value: 1\n"
        "models: [{model: b}]\n",
        "recipe:7: `density` is a number from 0 to 1, found 2",
        "",
    ),
    "number and filter": (
        TIES + "parameters: {weight: [0.1, {value: 2}]}\nmodels: [{model: b}]\n",
        "recipe:3: `parameters.weight`: the number `0.1` among filters",
        "may leave out its filter",
    ),
    "misspelt filter": (
        TIES + "parameters:\n  weight:\n    - value: 1\n      fliter: mlp\nmodels: [{model: b}]\n",
        "recipe:6: `parameters.weight`: unknown key `fliter`",
        "did you mean `filter`?",
    ),
    "filter without value": (
        TIES + "parameters: {weight: {filter: mlp}}\nmodels: [{model: b}]\n",
        "`parameters.weight`: a filter without `value`",
        "{filter: mlp, value: 0.5}",
    ),
    "filter is a number": (
        TIES + "parameters: {weight: {filter: 3, value: 1}}\nmodels: [{model: b}]\n",
        "`parameters.weight`: a filter is text, found the number `3`",
        "",
    ),
    "empty gradient": (
        TIES + "parameters: {weight: []}\nmodels: [{model: b}]\n",
        "an empty list",
        "at least one",
    ),
    "no value": (
        TIES + "parameters: {weight: }\nmodels: [{model: b}]\n",
        "nothing where a value belongs",
        "",
    ),
    "truth as weight": (
        TIES + "parameters: {weight: true}\nmodels: [{model: b}]\n",
        "recipe:3: `weight` is a number, found the truth value `true`",
        "",
    ),
    "weight as truth": (
        TIES + "parameters: {weight: 1, normalize: 2}\nmodels: [{model: b}]\n",
        "recipe:3: `normalize` is true or false, found the number `2`",
        "",
    ),
    "wrong choice": (
        "merge_method: dare_ties\nbase_model: a\nparameters: {weight: 1, rescale_norm: expectaton}\n"
        "models: [{model: b}]\n",
        "recipe:3: `rescale_norm` is l1 or expectation, found the text `expectaton`",
        "did you mean `expectation`?",
    ),
    "half an iteration": (
        "merge_method: karcher\nparameters: {max_iter: 2.5}\nmodels: [{model: b}]\n",
        "recipe:2: `max_iter` is a whole number, found 2.5",
        "",
    ),
    "weight not a number": (
        TIES + "parameters: {weight: abc}\nmodels: [{model: b}]\n",
        "recipe:3: `weight` is a number, found the text `abc`",
        "",
    ),
    "dtype": (
        LINEAR + "dtype: bfloat17\n",
        "recipe:4: `dtype`: `bfloat17` is not a float type",
        "`bfloat16`",
    ),
    "preset": (
        LINEAR + "preset: no-embeds\n",
        "recipe:4: `preset` is `full`, `no-embed` or `no-embed-norm`, found the text `no-embeds`",
        "did you mean `no-embed`?",
    ),
    "rounding": (LINEAR + "rounding: up\n", "recipe:4: `rounding` is `nearest` or `stochastic`", ""),
    "pattern": (LINEAR + "include: '('\n", "recipe:4: include `(` is not a regular expression", ""),
    "layers": (LINEAR + "layers: 1-x\n", "recipe:4: layers `1-x` has a part", ""),
    "seed": (LINEAR + "seed: -1\n", "recipe:4: `seed` is out of range: the number `-1`", ""),
    "large seed": (LINEAR + f"seed: {2**64}\n", "recipe:4: `seed` is out of range", ""),
    "alpha": (
        TASK + "alpha: [0.5, x]\nmodels: [{model: b}]\n",
        "recipe:4: `alpha`: alpha `x` is not a number",
        "",
    ),
    "alpha of a method without a step": (
        LINEAR + "alpha: 0.5\n",
        "recipe:4: `alpha` scales a step from the base, and `linear` makes none",
        "remove `alpha`",
    ),
    "a mixture of experts": (
        "base_model: a\ngate_mode: hidden\nexperts:\n- source_model: a\n",
        "recipe:2: this is a recipe for `mergekit-moe`, which makes a mixture of experts",
        "`taskvec moe`",
    ),
    "a mixture of experts, by method": (
        "merge_method: moe\nmodels: [{model: a}]\n",
        "recipe:1: this is a recipe for `mergekit-moe`",
        "`taskvec moe`",
    ),
    "a search for a recipe": (
        "genome:\n  models: [a, b]\n  merge_method: ties\ntasks: [{name: x}]\n",
        "recipe:1: this is a recipe for `mergekit-evolve`",
        "`taskvec search`",
    ),
    "a stack of layers": (
        "layer_sources: [{model: a}]\n",
        "recipe:1: this is a recipe for `bakllama`",
        "run `bakllama`",
    ),
    "a parameter of another method at the top": (
        TIES + "models: [{model: b, parameters: {weight: 1}}]\ngamma: 0.1\n",
        "recipe:4: unknown key `gamma`",
        "remove it: `gamma` is a parameter of `breadcrumbs`, `breadcrumbs_ties`, and `ties` does not have it",
    ),
    "a key like no other": (
        TIES + "models: [{model: b, parameters: {weight: 1}}]\nexponent: 2\n",
        "recipe:4: unknown key `exponent`",
        "known here: `merge_method`",
    ),
    "the same model twice": (
        "merge_method: model_stock\nbase_model: a\nmodels: [{model: b}, {model: b}]\n",
        "`b` is listed twice",
        "name it once",
    ),
    "single tokens": (
        LINEAR + "tokenizer:\n  source: a\n  tokens: {x: {from: b}}\n",
        "recipe:6: `tokenizer.tokens`: a mapping where the source of a token belongs",
        "write `{source: MODEL}`",
    ),
    "padding": (
        LINEAR + "tokenizer: {source: a, pad_to_multiple_of: many}\n",
        "`tokenizer.pad_to_multiple_of`: rows are padded to a multiple of a whole number",
        "pad_to_multiple_of: 64",
    ),
    "two tokenizers": (
        LINEAR + "tokenizer: {source: a}\ntokenizer_source: a\n",
        "`tokenizer` and `tokenizer_source` together",
        "keep one",
    ),
    "chat template": (
        LINEAR + "chat_template: chatlm\n",
        "recipe:4: `chat_template`: `chatlm` is neither a known chat template nor a Jinja template",
        "did you mean `chatml`?",
    ),
    "a module with nothing": (
        "merge_method: linear\nmodules:\n  text_decoder: {}\n",
        "recipe:3: module `text_decoder` has to have either `models` or `slices`",
        "",
    ),
    "name of a folder": (LINEAR + "name: ../x\n", "recipe:4: `name`: `../x` cannot name a document", ""),
}

ACCEPTED = {
    "everything of ours": TASK + "models:\n  - {model: b, relative_to: c}\n  - {vector: v.vec}\n"
    "include: mlp\nexclude: [bias$]\npreset: no-embed\nlayers: 2-9\nrounding: stochastic\nseed: 7\n"
    "alpha: [0.5, 1, -1]\nout_dtype: float32\n",
    "adapters": LINEAR.replace("model: a", "model: org/a@main+org/adapter@v2")
    + "tokenizer_source: base\nchat_template: chatml\n",
    "mergekit's long form": LINEAR.replace(
        "model: a", "model: {model: {path: a, revision: r}, lora: {path: b}, override_architecture: null}"
    )
    + "tokenizer: {source: a, tokens: {}, pad_to_multiple_of: null}\n",
    "union": LINEAR + "tokenizer_source: union\n",
    "union, modern": LINEAR + "tokenizer: {source: union}\n",
    "union, by default": LINEAR + "tokenizer: {}\nchat_template: auto\n",
    "words without effect": "merge_method: model_stock\nbase_model: a\n"
    "models: [{model: b, parameters: {weight: 1, density: 0.5}}, {model: c}]\n"
    "parameters: {normalize: true, int8_mask: true, embed_slerp: true, t: [0, 1]}\n",
    "keys of nothing": LINEAR + "base_model: null\nslices: null\ndtype: ~\nchat_template: null\nname: null\n",
    "a jinja template": LINEAR + 'chat_template: "{% for m in messages %}{{ m.content }}{% endfor %}"\n',
    "a number as text": LINEAR.replace("1", '"1e-5"'),
    "a capitalised type": LINEAR + "dtype: torch.bfloat16\n",
    "modules": "merge_method: linear\nparameters: {weight: 1}\nmodules:\n"
    "  text_decoder: {slices: [{sources: [{model: a, layer_range: [0, 2]}]}]}\n"
    "  vision_tower: {models: [{model: a}], parameters: {normalize: false}}\n",
}
