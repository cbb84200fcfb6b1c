"""What this project relies on in other packages, written down once, with the versions it was read from."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
from pathlib import Path

UNSLOTH_VERSIONS = {"unsloth": "2026.10.7", "unsloth_zoo": "2026.10.7"}

UNSLOTH_SIGNATURES = {
    ("unsloth/models/loader.py", "FastLanguageModel.from_pretrained"): (
        "model_name='unsloth/Llama-3.2-1B-Instruct', max_seq_length=2048, dtype=None, load_in_4bit=True, "
        "load_in_8bit=False, load_in_16bit=False, full_finetuning=False, token=None, device_map=None, "
        "device_map_planner_kwargs=None, rope_scaling=None, fix_tokenizer=True, trust_remote_code=False, "
        "use_gradient_checkpointing='unsloth', resize_model_vocab=None, revision=None, use_exact_model_name=False, "
        "offload_embedding=None, float32_mixed_precision=None, fast_inference=False, gpu_memory_utilization=0.5, "
        "float8_kv_cache=False, random_state=3407, max_lora_rank=64, disable_log_stats=True, qat_scheme=None, "
        "load_in_fp8=False, unsloth_tiled_mlp=False, text_only=False, *args, on_model_resolved=None, **kwargs"
    ),
    ("unsloth/models/llama.py", "FastLlamaModel.get_peft_model"): (
        "model, r=16, target_modules=None, lora_alpha=16, lora_dropout=0.0, bias='none', layers_to_transform=None, "
        "layers_pattern=None, finetune_last_n_layers=None, use_gradient_checkpointing='unsloth', random_state=3407, "
        "max_seq_length=2048, use_rslora=False, modules_to_save=None, init_lora_weights=True, loftq_config={}, "
        "temporary_location='_unsloth_temporary_saved_buffers', qat_scheme=None, target_parameters=None, "
        "ensure_weight_tying=None, offload_layers=None, checkpoint_skip_layers=0, **kwargs"
    ),
    ("unsloth/models/llama.py", "FastLlamaModel.for_inference"): "model",
}
"""The whole signatures. Defaults that are names in Unsloth's source stand here as None."""

UNSLOTH_CALLS = {
    "FastLanguageModel.from_pretrained": ("unsloth/models/loader.py", "FastLanguageModel.from_pretrained"),
    "FastLanguageModel.get_peft_model": ("unsloth/models/llama.py", "FastLlamaModel.get_peft_model"),
    "FastLanguageModel.for_inference": ("unsloth/models/llama.py", "FastLlamaModel.for_inference"),
}
"""What the project calls, and whose signature that is (FastLanguageModel wraps its parent's)."""

UNSLOTH_SOURCE_SAYS = (
    # with_unsloth.py imports it first for this reason
    ("unsloth/_gpu_init.py", "Unsloth should be imported before"),
    # train.py's loss per slot needs the logits of a validation, and training must not keep them
    ("unsloth/models/rl.py", 'os.environ["UNSLOTH_RETURN_LOGITS"] = "1"'),
    ("unsloth/models/rl.py", 'os.environ["UNSLOTH_RETURN_LOGITS"] = _old_return_logits'),
    # with_unsloth.py sets these
    ("unsloth_zoo/fused_losses/cross_entropy_loss.py", 'os.environ.get("UNSLOTH_CE_LOSS_TARGET_GB"'),
    ("unsloth_zoo/compiler.py", 'os.environ.get("UNSLOTH_COMPILE_LOCATION"'),
    # base.py then finds no 4-bit layer, and refuses
    ("unsloth/models/loader.py", "disabling 4bit/8bit"),
    # trainer.py says so before, in one line
    ("unsloth_zoo/tokenizer_utils.py", "def fix_untrained_tokens("),
    # batches.py's collator must switch Unsloth's own packing off
    ("unsloth/trainer.py", "(data_collator is not None)"),
    # adapter.py asks for it by this name
    ("unsloth_zoo/gradient_checkpointing.py", "def unsloth_gradient_checkpoint("),
)
"""Pieces of Unsloth's source that the project depends on. Where one is gone, read the new code and think again."""

METHODS = {
    "transformers.Trainer.compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "transformers.Trainer.train": ("resume_from_checkpoint",),
    "transformers.Trainer.add_callback": ("callback",),
    "transformers.Trainer.remove_callback": ("callback",),
    "transformers.Trainer._get_train_sampler": ("train_dataset",),
    "transformers.PreTrainedModel.gradient_checkpointing_enable": ("gradient_checkpointing_kwargs",),
    "transformers.PreTrainedModel.enable_input_require_grads": (),
    "transformers.PreTrainedModel.save_pretrained": ("save_directory", "max_shard_size"),
    "transformers.LlamaForCausalLM.forward": ("input_ids", "attention_mask", "position_ids", "past_key_values",
                                              "labels", "use_cache", "logits_to_keep"),
    "peft.PeftModel.save_pretrained": ("save_directory", "safe_serialization"),
    "peft.PeftModel.disable_adapter": (),
    "peft.tuners.lora.LoraModel.merge_and_unload": ("safe_merge",),
    "trl.SFTTrainer.__init__": ("model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class",
                                "compute_metrics", "preprocess_logits_for_metrics"),
    "trl.SFTTrainer.compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "bitsandbytes.nn.Linear4bit.forward": ("x",),
}  # fmt: skip
"""Methods that are called on objects, or overridden, with the parameters that the project uses."""

HANDED_ON = {
    "transformers.AutoModelForCausalLM.from_pretrained": "transformers.PreTrainedModel.from_pretrained",
    "transformers.AutoTokenizer.from_pretrained": "transformers.PreTrainedTokenizerBase.from_pretrained",
    "transformers.AutoConfig.from_pretrained": "transformers.AutoConfig.from_pretrained",
    "transformers.BitsAndBytesConfig": "transformers.BitsAndBytesConfig.__init__",
    "peft.PeftModel.from_pretrained": "peft.PeftModel.from_pretrained",
}
"""Functions with **kwargs, and where those are read: each keyword must be a parameter or a string in that source."""


def unsloth_source() -> Path | None:
    """The folder of unsloth/ and unsloth_zoo/: $UNSLOTH_SOURCE, or where they are installed. Imports nothing."""
    if named := os.environ.get("UNSLOTH_SOURCE"):
        return Path(named)
    found = importlib.util.find_spec("unsloth")  # of a top-level package: finds it, runs nothing
    return Path(found.origin).parents[1] if found and found.origin else None


def unsloth_versions(source: Path) -> dict[str, str]:
    """The versions of what lies in that folder."""
    found = importlib.metadata.distributions(path=[str(source)])
    return {d.metadata["Name"].replace("-", "_"): d.version for d in found if "unsloth" in d.metadata["Name"]}


def function_in(source: str, name: str) -> ast.FunctionDef:
    """The function 'Class.method' of a module's source; KeyError if it is gone."""
    klass, _, method = name.partition(".")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == klass:
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name == method:
                    return inner
    raise KeyError(name)


def parameters(function: ast.FunctionDef) -> dict[str, str | None]:
    """Name -> default as source (None: it has none); '*' and '**' lead the names of the catch-alls."""
    args = function.args
    names = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(names) - len(args.defaults)) + [*args.defaults]
    found = {a.arg: None if d is None else ast.unparse(d) for a, d in zip(names, defaults, strict=True)}
    if args.vararg:
        found[f"*{args.vararg.arg}"] = None
    found |= {a.arg: None if d is None else ast.unparse(d)
              for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)}  # fmt: skip
    return found | ({f"**{args.kwarg.arg}": None} if args.kwarg else {})


def recorded(call: tuple[str, str]) -> dict[str, str | None]:
    """`parameters` of a recorded signature."""
    return parameters(ast.parse(f"def f({UNSLOTH_SIGNATURES[call]}): ...").body[0])  # type: ignore[arg-type]
