"""Tiny random-weight checkpoints of many architectures, with a byte-level tokenizer of their own.

Real transformers models, saved as any model is; only small, and knowing nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shammah.adapters.weights import LoraWeights
    from shammah.generation.engine import Engine
    from shammah.models.load import BaseModel

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS = ("llama", "mistral", "gemma", "phi", "qwen3", "gpt2", "qwen2")
END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def build(
    kind: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    chat_template: str | None = CHATML,
    **overrides: Any,
) -> Path:
    """Write a tiny checkpoint with its tokenizer to `folder` and return it.

    Args:
        kind: one of KINDS, or `opt`.
        seed: of the random weights.
        dtype: `float32` or `bfloat16`.
        chat_template: None for a tokenizer without one.
        overrides: of the configuration.
    """
    import torch

    tokenizer = byte_tokenizer(chat_template)
    torch.manual_seed(seed)
    model = _model(kind, len(tokenizer), overrides).to(getattr(torch, dtype))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_babbler(folder: Path) -> Path:
    """Write a model that says letters and blanks and finds no end: its answers last."""
    import string

    import torch
    import transformers as hf

    tokenizer = byte_tokenizer()
    settings = {"num_key_value_heads": 4, "max_position_embeddings": 200_000}
    model = _model("phi", len(tokenizer), settings)
    said = [*string.ascii_lowercase, "Ġ", "Ġ", "Ġ", "Ġ", "Ċ"]
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.fill_(-1e4)
        model.lm_head.bias[tokenizer.convert_tokens_to_ids(said)] = 0.0
    model.generation_config = hf.GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def engine_for(base: BaseModel) -> Engine:
    """An engine with the renderer that the program would choose."""
    from shammah.generation.engine import Engine
    from shammah.renderers.registry import renderer_for

    return Engine(base, renderer_for(base.tokenizer, base.stop_tokens, base.renderer))


def random_adapter(
    base: BaseModel, seed: int, *, only: str = "", size: float = 0.3, rank: int = 4
) -> LoraWeights:
    """An adapter with normal random numbers of a size, on every layer whose path holds `only`."""
    import torch

    from shammah.adapters.weights import LoraWeights

    source = torch.Generator().manual_seed(seed)
    modules = {
        path: (
            torch.randn(rank, inputs, generator=source) * size,
            torch.randn(outputs, rank, generator=source) * size,
        )
        for path, (inputs, outputs) in base.shape.modules.items()
        if only in path
    }
    return LoraWeights(modules, 2.0)


def byte_tokenizer(chat_template: str | None = CHATML) -> Any:
    """256 byte tokens, a few merged ones, and ChatML's special tokens; <|im_end|> ends."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("e", "r"), ("o", "u"), ("Ã", "©")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    vocabulary = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(text, special=True) for text in (END, IM_START, IM_END)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=IM_END, pad_token=END, model_max_length=4096
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def _model(kind: str, vocabulary: int, overrides: dict[str, Any]) -> Any:
    import transformers as hf

    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,  # large enough that logits differ clearly
        "bos_token_id": None,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 3,
    }
    match kind:
        case "llama":
            return hf.LlamaForCausalLM(hf.LlamaConfig(**common | overrides))
        case "mistral":
            # A window shorter than the prompts of the tests, so that it matters.
            window = {"sliding_window": 16}
            return hf.MistralForCausalLM(hf.MistralConfig(**common | window | overrides))
        case "gemma":
            return hf.GemmaForCausalLM(hf.GemmaConfig(**common | {"head_dim": 8} | overrides))
        case "phi":
            heads = {"num_key_value_heads": 4}
            return hf.PhiForCausalLM(hf.PhiConfig(**common | heads | overrides))
        case "qwen3":
            return hf.Qwen3ForCausalLM(hf.Qwen3Config(**common | {"head_dim": 8} | overrides))
        case "qwen2":
            tied = {"tie_word_embeddings": True}
            return hf.Qwen2ForCausalLM(hf.Qwen2Config(**common | tied | overrides))
        case "gpt2":
            names = {
                "vocab_size": vocabulary,
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 4,
                "n_positions": 512,
                "initializer_range": 0.2,
                "bos_token_id": None,
                "eos_token_id": vocabulary - 1,
                "pad_token_id": vocabulary - 3,
            }
            return hf.GPT2LMHeadModel(hf.GPT2Config(**names | overrides))
        case "opt":  # whose layers lie one part deeper than those of the others
            names = {"ffn_dim": 64, "word_embed_proj_dim": 32}
            return hf.OPTForCausalLM(hf.OPTConfig(**common | names | overrides))
        case _:
            raise ValueError(f"no tiny model of kind {kind!r}; there are {', '.join(KINDS)}")
