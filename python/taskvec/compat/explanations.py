"""What each finding and each error comes from, and the way out: the catalogue of the documentation.

A finding that is shown names its subject and the values that differ. Here is what all findings of a sort have
in common, for those who meet one for the first time.
"""

from __future__ import annotations

from typing import NamedTuple


class Explanation(NamedTuple):
    """Why something is found or raised, and what to do; whole sentences in Markdown."""

    cause: str
    way_out: str


_ORIGINALS = "Give the checkpoints from before they were quantised, where there are any."
_VOCABULARY = (
    "Join the vocabularies with `--tokenizer union` (in a recipe `tokenizer_source: union`), move a model to "
    "the other's tokenizer with `taskvec tokens`, or leave embedding and head out with `--preset no-embed`."
)
_NOTHING = "Nothing is to be done."

FINDINGS: dict[str, Explanation] = {
    "quantised": Explanation(
        "The format of a packed weight is not one that is read, a scale is missing or of another grid than "
        "config.json says, or the output type has to be chosen.",
        "The finding names the tensor and the format. Give a checkpoint in a format that is read, or the one "
        "from before it was quantised; where the output type is open, choose it with `--out-dtype`.",
    ),
    "quantised-copied": Explanation(
        "The selection leaves packed tensors out.",
        "Nothing is to be done: they keep the target's bytes.",
    ),
    "quantised-mixed": Explanation(
        "Each format rounds in its own way. The difference of two formats holds the rounding error of both, "
        "which is larger than what a fine-tune changes.",
        f"{_ORIGINALS} Two checkpoints of one format do as well.",
    ),
    "quantised-basis": Explanation(
        "AWQ scales the columns of a weight and moves the inverse into the norm before it, by factors that "
        "differ from file to file. Equal positions are then not the same weight.",
        _ORIGINALS,
    ),
    "quantised-noise": Explanation(
        "Donor and reference are quantised. What their rounding leaves is several times longer than what a "
        "fine-tune changes; the summary estimates how much of the difference is a vector.",
        _ORIGINALS,
    ),
    "quantised-rules": Explanation(
        "More scales of donor and reference differ than a small change explains: the two were quantised by "
        "different tools or with different data.",
        _ORIGINALS,
    ),
    "quantised-ranking": Explanation(
        "In 4 bits a difference is zero or a whole step of the format, whatever was learned. A method that "
        "keeps the largest differences then keeps the coarsest groups.",
        f"{_ORIGINALS} Or take a method that takes every element by itself, such as `task_arithmetic`.",
    ),
    "quantised-switch": Explanation(
        "The vector is made of whole codes of the format, and a part of a code is rounded to none or all.",
        "Write plain weights with `--out-dtype bfloat16`, or round with `--rounding stochastic`.",
    ),
    "quantised-lost": Explanation(
        "A sample of the weights says that rounding to the target's format would take most of the vector.",
        "Leave `--out-dtype target` out, so that plain weights are written; or round with "
        "`--rounding stochastic`, or take a larger alpha.",
    ),
    "quantised-output": Explanation(
        "The target is quantised, and its output may be in the same format or plain.",
        "Nothing is to be done unless the other form is wanted: `--out-dtype target` or `bfloat16`.",
    ),
    "convert-plain": Explanation(
        "The packed format has no form for some weights: their sides are not multiples of its groups, or "
        "several experts lie in one tensor that readers of the format do not take.",
        "Nothing has to be done; readers take the rest as packed and these as they are. Another format may "
        "have a form for them.",
    ),
    "saved-vector": Explanation(
        "A folder that `taskvec extract` wrote holds a difference, not the weights of a model.",
        "Add it to a checkpoint with `taskvec apply TARGET VECTOR`, or give the model that it was made of.",
    ),
    "lora-adapter": Explanation(
        "The folder holds the factors of an adapter, not the weights of a model.",
        "Write `BASE+ADAPTER` where a model is named, or merge it into its base first.",
    ),
    "adapter-partial": Explanation(
        "PEFT saves factors of every module that `target_modules` name. The file lacks some, in layers or "
        "parts of layers whose other modules have them: it was cut short, or written by another tool.",
        "If the modules were not to be trained, nothing is to be done; otherwise save the adapter again.",
    ),
    "adapter-beyond": Explanation(
        "PEFT loads factors of the modules that `target_modules`, `exclude_modules` and "
        "`layers_to_transform` choose, and passes over the others in the file. Settings and weights come "
        "from different saves, or the settings were changed.",
        "Remove the factors that are not meant, or correct the settings; the merge takes all of them.",
    ),
    "architecture": Explanation(
        "`model_type` differs: the models compute something else with weights of the same name.",
        "Give models of one family.",
    ),
    "architecture-class": Explanation(
        "One model has another head, such as a classifier or a reward head.",
        "Leave the head out with `--preset no-embed`.",
    ),
    "config-missing": Explanation(
        "A folder with weights alone, or a single file, has no config.json.",
        "Make sure that the models are of one family and size; put the config.json next to the weights.",
    ),
    "config-function": Explanation(
        "Shapes are equal and a key such as `rope_theta`, `rms_norm_eps` or `hidden_act` is not: the same "
        "weights compute another function. Qwen2.5-Math-1.5B, for example, has another `rope_theta` than "
        "Qwen2.5-1.5B.",
        "Give models of one lineage. With `--force config-function` the target's configuration is kept.",
    ),
    "config-context": Explanation(
        "One model was trained for longer inputs than another.",
        "The target's is kept. Try long inputs before the result is used for them.",
    ),
    "config-other": Explanation(
        "A key is not among those that are known to change the function, nor among those that are known "
        "not to.",
        "Look whether it matters for these models. The target's value is kept.",
    ),
    "tensor-missing": Explanation(
        "The other model has no such tensor, under its name or in any known layout: another family, another "
        "number of layers, or a checkpoint that was not saved whole.",
        "Give models of one architecture, or leave the tensors out with `--exclude`.",
    ),
    "tensor-unused": Explanation(
        "The other model has more than the target: a head, a vision tower, further layers.",
        "Make sure that the models belong together. What has no counterpart is not used.",
    ),
    "shape": Explanation(
        "The models are of different sizes, or one was pruned or padded.",
        "Give models of one size, or leave these tensors out with `--exclude`.",
    ),
    "vocabulary-rows": Explanation(
        "Models of a merge have vocabularies of different sizes, or pad them differently.",
        _VOCABULARY,
    ),
    "vocabulary-padded": Explanation(
        "Embeddings are often padded to a multiple of 64 or 128, and families do it differently.",
        "Nothing is to be done if ids stand for the same tokens: the common rows take the vector, the "
        "target's others are kept. Otherwise leave them out with `--preset no-embed`.",
    ),
    "vocabulary-joined": Explanation(
        "`--tokenizer` or `tokenizer_source` asks for another vocabulary than the target's.", _NOTHING
    ),
    "tokens-approximated": Explanation(
        "`taskvec tokens` moves a model to another tokenizer, and some of its tokens are new to the model.",
        "The note counts what was copied, approximated and left at zero. Try the result before you use it.",
    ),
    "token-rows-missing": Explanation(
        "A token of the output stands in no model's embedding, or nothing stands for it.",
        "Train these rows, or take another source of the tokenizer.",
    ),
    "token-ids": Explanation(
        "config.json or generation_config.json names another special token than the tokenizer does, or the "
        "chat template uses marks that are not tokens.",
        "Mend the model's files. A model that looks for the wrong end token does not stop.",
    ),
    "tokenizer-round-trip": Explanation(
        "The tokenizer drops or changes characters: it lower-cases, strips, or lacks bytes.",
        "Nothing has to be done where the model was trained so; otherwise look at its normaliser.",
    ),
    "vocabulary-unreachable": Explanation(
        "The joined tokenizer prepares texts as the base's does, and pieces of the other model begin "
        "otherwise.",
        "These rows are never used. To save them, take one model's vocabulary (`tokenizer_source: base`).",
    ),
    "layout": Explanation(
        "Experts are fused in one model and single in the other, queries, keys and values lie in one tensor, "
        "or names have other prefixes.",
        "Nothing is to be done: weights are matched, and the output is in the target's layout.",
    ),
    "predictor-kept": Explanation(
        "Layers for multi-token prediction are left out of many fine-tunes.",
        "Nothing is to be done: the target's are kept.",
    ),
    "buffers-kept": Explanation(
        "Older versions of transformers saved frequencies of the rotary embedding and causal masks, which "
        "newer ones make of the config.",
        _NOTHING,
    ),
    "factors-apart": Explanation(
        "The checkpoints hold unmerged factors of an adapter next to their weights, or a scale next to a "
        "matrix. A merge combines each stored tensor by itself, and a product of sums is not the sum of "
        "products.",
        "Merge the adapters into their models first; of codes with scales take the checkpoints from before. "
        "A model that has such factors as weights of its own is as the authors mean it; then nothing is to "
        "be done.",
    ),
    "dtype": Explanation(
        "One model was saved in another type, such as float32 after training.",
        "Nothing is to be done: all are widened, and the output has the target's type.",
    ),
    "dtype-kind": Explanation(
        "A tensor is stored as integers in one model: as codes, or as a buffer.",
        "Give models that are stored alike, or leave these tensors out with `--exclude`.",
    ),
    "non-float": Explanation("Position ids, masks and counters are not weights.", _NOTHING),
    "non-float-differs": Explanation(
        "A buffer was changed between the models.",
        "The target's values are kept. Look whether the tensor matters.",
    ),
    "tied-head": Explanation(
        "Small models share the embedding with the output head; a fine-tune may have untied them.",
        "The finding says what is written, and config.json agrees with it.",
    ),
    "nothing-selected": Explanation(
        "The selection matches no float tensor that all models have.",
        "Widen `--include`, `--layers` or `--preset`; `taskvec inspect MODEL --all` lists the names.",
    ),
    "selection-whole": Explanation(
        "The method ranks or measures whole stored tensors, and the selection takes a part of one.",
        "Select stored tensors as a whole, or take a method that takes every element by itself.",
    ),
    "selection-groups": Explanation(
        "Weights that share a scale are changed in part; where the changed ones need another scale, the rest "
        "is rounded to it again.",
        "Write plain weights with `--out-dtype bfloat16`, or select whole groups.",
    ),
    "selection-unused": Explanation(
        "A pattern matches no tensor: probably a typing error, or the name of another family.",
        "Compare it with the names that `taskvec inspect MODEL --all` lists.",
    ),
    "states-left": Explanation(
        "A distributed checkpoint of a training run holds the states of optimizer and trainer.",
        "Nothing is to be done: they are left out and counted.",
    ),
    "gguf": Explanation(
        "A GGUF file holds quantised blocks, which are decoded to float32 as the package gguf does.",
        "Where donor and reference both were packed, their rounding is in the vector: "
        "give their safetensors instead.",
    ),
    "variant": Explanation(
        "The folder holds the same weights several times, as `fp16` or `ema`.",
        "Name one with `--variant TAG` or `MODEL?variant=TAG` if another is wanted.",
    ),
    "lfs-pointer": Explanation(
        "The repository was cloned without git-lfs: a file holds a pointer of three lines.",
        "Run `git lfs pull` in the folder, or give the name on the hub.",
    ),
    "file-damaged": Explanation(
        "A file that would be copied is empty, is called `.json` and is not JSON, or is a link that leads "
        "nowhere: a download was interrupted, or a server has answered with a page.",
        "Download or copy the file again. The output's weights do not depend on it.",
    ),
    "files-kept": Explanation(
        "The target has modules of its own (a folder of a pipeline, dense layers) that the others lack.",
        "Nothing is to be done if they are to stay as they are.",
    ),
    "files-left": Explanation(
        "The target's folder holds other forms of the weights, or states of training.",
        "Copy what is needed by hand.",
    ),
    "tokenizer-missing": Explanation(
        "A folder has no tokenizer.json, so that its vocabulary is not known.",
        "Put the tokenizer next to the weights, or make sure that the models share one vocabulary.",
    ),
    "tokenizer-vocabulary": Explanation(
        "The same id stands for other tokens: rows of the embeddings do not belong together.", _VOCABULARY
    ),
    "tokenizer-merges": Explanation(
        "The merges of the tokenizers differ, so that the models saw texts cut in other ways.", _VOCABULARY
    ),
    "tokenizer-pipeline": Explanation(
        "Normaliser, pre-tokenizer, post-processor or decoder differ, often by a release of transformers.",
        "The target's is kept. Compare how both cut a text if results are strange.",
    ),
    "added-tokens": Explanation(
        "A fine-tune has given an id of its own to another token than the target has.", _VOCABULARY
    ),
    "added-tokens-extra": Explanation(
        "A fine-tune has added tokens, such as those around its thoughts; their rows may be untrained in the "
        "other model.",
        "Nothing is to be done if the target does not use them; otherwise join the vocabularies.",
    ),
    "special-tokens": Explanation(
        "The models begin or end texts with other tokens.",
        "The target's is kept. Test that the result stops; its end token can be set in "
        "generation_config.json.",
    ),
    "tokenizer-settings": Explanation("tokenizer_config.json has other settings.", "The target's are kept."),
    "chat-template": Explanation(
        "Fine-tunes bring templates of their own.",
        "The target's is kept. For a donor that thinks in a format of its own, copy its template.",
    ),
    "lineage": Explanation(
        "A sample of the weights gives the distances between the models, whatever they are.",
        "Read them: donor and reference should be nearest to each other.",
    ),
    "zero-vector": Explanation(
        "Donor and reference are one model, often by a mistake in a path.",
        "Give the model that the donor was trained from as the reference.",
    ),
    "swapped-roles": Explanation(
        "Another pair of models is nearer to each other than donor and reference.",
        "Compare the paths with the roles: did you swap two of them?",
    ),
    "unrelated-reference": Explanation(
        "The reference is as far from the donor as models are that were trained apart.",
        "Give the model that the donor was trained from.",
    ),
    "unrelated-target": Explanation(
        "The target was not tuned from the same pretrained model as donor and reference.",
        "A vector carries over between models of one ancestor. Give such a target, or measure what it does.",
    ),
    "recipe-ignored": Explanation(
        "A word is known and has no effect in its place: a parameter of another method, or one of the whole "
        "merge under a single model.",
        "Remove it, or move it to where the finding says.",
    ),
    "recipe-filter": Explanation(
        "A filter matches no tensor that is merged: probably a typing error, or a recipe for another family.",
        "Compare it with the names that `taskvec inspect MODEL --all` lists.",
    ),
    "recipe-layers": Explanation(
        "The model has layers of several kinds in a pattern that config.json gives as a period, and the new "
        "order of layers breaks it.",
        "Take layers in whole periods.",
    ),
    "recipe-modules": Explanation(
        "The recipe names modules, and the model has tensors in none of them.",
        "Nothing is to be done if they are to be the base's; otherwise name their module.",
    ),
    "recipe-unused": Explanation(
        "A document of the recipe has a name that no other one uses.",
        "Remove it, or name it where its result belongs.",
    ),
    "checkpoints-left": Explanation(
        "A trainer was still writing a checkpoint of the run, or its weights were deleted.",
        "Wait until it is saved and run the same command again, or leave it at that.",
    ),
    "moe-code": Explanation(
        "transformers has no class of its own for this layout of experts.",
        "Load the result with `trust_remote_code=True` and the authors' code, or choose another "
        "`architecture`.",
    ),
    "non-finite": Explanation(
        "An input holds NaN or infinity, or a result does not fit into the output's type.",
        "The error names tensor and count. Mend the input, or write a wider type with `--out-dtype float32`.",
    ),
    "rounded-away": Explanation(
        "Steps are smaller than half the distance of two values of the output's type.",
        "Write `--out-dtype float32`, round with `--rounding stochastic`, or take a larger alpha.",
    ),
    "importance-zero": Explanation(
        "No document of the importance maps touched some elements, such as rows of tokens that never occur.",
        "Nothing is to be done: they are the mean by the weights alone. More documents touch more.",
    ),
    "not-low-rank": Explanation(
        "What was learned is spread over many directions, as reinforcement learning leaves it.",
        "Save the vector itself with `taskvec extract`, or take a larger rank.",
    ),
}

ERRORS: dict[str, Explanation] = {
    "Error": Explanation(
        "The base of all others: catch it to catch whatever taskvec raises on purpose.",
        "Its `hint` is the way out of the case at hand.",
    ),
    "TensorNotFoundError": Explanation(
        "A checkpoint, a vector or a merge was asked for a tensor that it does not have; it is a `KeyError` "
        "too.",
        "Take the name that the hint says, or one of `keys()`.",
    ),
    "NotFoundError": Explanation(
        "A path, a file of a model, a tensor or a repository does not exist.",
        "The message says what was searched. Compare the spelling; on a machine without a network, bring the "
        "model along.",
    ),
    "FormatError": Explanation(
        "A file is cut short, damaged, or was changed while it was read.",
        "Fetch the file again, or run the command when nothing else writes there.",
    ),
    "CompatibilityError": Explanation(
        "A finding of level error remains, or with `--strict` a warning.",
        "`findings` has all of them, each with its way out; `--force ID` goes on in spite of one.",
    ),
    "RecipeError": Explanation(
        "A word of a recipe, a selection or a setting is unknown, misplaced or out of bounds.",
        "The message names the line and the nearest valid word.",
    ),
    "OutputError": Explanation(
        "Writing failed, or the output folder holds something else: a full disk, permissions, another run.",
        "Make room, name another folder, or replace what is there with `--overwrite`. The same command goes "
        "on.",
    ),
    "NonFiniteError": Explanation(
        "NaN or infinity is in an input, or would be in the output.",
        "See `non-finite` among the findings.",
    ),
    "VerificationError": Explanation(
        "A file is not what the manifest says.",
        "Fetch or write the output again; `taskvec verify` names every file that differs.",
    ),
    "EngineError": Explanation(
        "A defect of taskvec itself: something that must not happen has happened.",
        "Report it, with what `--verbose` prints.",
    ),
    "HubError": Explanation(
        "The hub or an object store could not be reached, or refused: no network, no rights, a rate limit.",
        "The message has the answer. Log in (`hf auth login`, credentials in the environment), or try again: "
        "what was fetched is kept.",
    ),
    "EvaluationError": Explanation(
        "lm-eval, the model or a task of an evaluation failed, or results cannot be compared.",
        "The message names the arm and the task. Arms that are done are kept; the same command goes on.",
    ),
}
