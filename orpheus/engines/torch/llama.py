"""Our own forward pass of a Llama: static KV cache, one-token steps, the output head only for the rows asked for.

It calls the loaded model's own modules (projections, norms, MLPs), so 4-bit layers, LoRA layers and merged weights
work as they are, and it replaces only what stands between them: cache, masks, rotary embedding, attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

from orpheus.engines.batch import take
from orpheus.engines.torch.cpu import FEW_ROWS, turned_head


def why_not_llama(model: Any) -> str | None:
    """None for a model that `LlamaDecoder` computes exactly; else what is different about it, in plain words."""
    import torch

    if any(kind.peft_type != "LORA" for kind in getattr(model, "peft_config", {}).values()):
        return "its adapter is no LoRA"
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    config = base.config
    if type(base).__name__ != "LlamaForCausalLM" or config.model_type != "llama":
        return f"it is a {type(base).__name__}"
    if any(type(layer.self_attn).__name__ != "LlamaAttention" for layer in base.model.layers):
        return "its attention is not Llama's own"
    if (kind := base.model.rotary_emb.rope_type) not in ("default", "linear", "llama3"):
        return f"its rotary embedding ({kind}) changes with the length of the text"
    devices = {p.device for p in base.parameters()}
    if len(devices) != 1 or next(iter(devices)) == torch.device("meta"):
        return "it is spread over several devices"
    return None


class LlamaDecoder:
    """A batch of left-padded sequences under way, each with its keys and values in place. For one `stream` call."""

    name = "own step"

    def __init__(self, model: Any, rows: int, room: int) -> None:
        """Set memory aside for `rows` sequences of at most `room` tokens each, prompt and padding included.

        model: one that `why_not_llama` has nothing against.
        """
        import torch

        base = model.get_base_model() if hasattr(model, "peft_config") else model
        self.embed, self.layers, self.norm = base.model.embed_tokens, base.model.layers, base.model.norm
        self.head, config = base.lm_head, base.config
        self.turned = turned_head(self.head)
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = self.layers[0].self_attn.head_dim
        like = self.embed.weight
        self.columns = torch.arange(room, device=like.device)
        self.padding = torch.zeros(rows, dtype=torch.long, device=like.device)
        cos, sin = base.model.rotary_emb(like, self.columns[None])
        half = self.head_dim // 2
        # rotate(x) = (-second half, first half): the sign is put into the table, which changes no rounding.
        sign = torch.cat([-torch.ones(half), torch.ones(half)]).to(sin)
        self.cos, self.sin = cos[0], sin[0] * sign
        shape = (len(self.layers), 2, rows, self.key_heads, room, self.head_dim)
        # Zeros, not garbage: a masked column counts 0 times its value, and 0 times NaN is NaN.
        self.cache = torch.zeros(shape, dtype=like.dtype, device=like.device)

    def part(self, start: int, stop: int) -> Self:
        """The rows from `start` to before `stop` as a decoder of their own, in the same memory."""
        other = copy(self)
        other.cache, other.padding = self.cache[:, :, start:stop], self.padding[start:stop]
        return other

    def prefill(self, ids: Any, padding: Any) -> Any:
        """Start anew with these prompts. Returns the hidden state of their last token, [B, H] in the model's dtype.

        Args:
            ids: int64 [B, P], padded on the left.
            padding: int64 [B], how many columns of each row are padding.
        """
        import torch

        width = ids.shape[1]
        self.padding.copy_(padding)
        columns = self.columns[:width]
        positions = (columns - padding[:, None]).clamp(min=0)
        mask = None
        if bool(padding.any()):
            mask = (columns[:, None] >= columns) & (columns >= padding[:, None, None])
            # A padding token sees itself: a row of the mask with nothing in it would make NaN of its values.
            mask = (mask | (columns[:, None] == columns))[:, None]
        rotation = self.cos[positions][:, None], self.sin[positions][:, None]

        def attend(q: Any, k: Any, v: Any, keys: Any, values: Any) -> Any:
            keys[:, :, :width], values[:, :, :width] = k, v
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
            )

        x = self.embed(ids)
        for layer, cache in zip(self.layers, self.cache, strict=True):
            x = self._layer(layer, x, rotation, cache, attend)
        return self.norm(x[:, -1:])[:, 0]

    def advance(self, token: Any, column: Any, bound: int) -> Any:
        """Feed one token per row. Returns its hidden state, [B, H].

        Args:
            token: int64 [B].
            column: int64 [1], where it stands in every row, or [B], in each; on the device: its value is never read
                on the host.
            bound: columns to look at, more than `column`; those after it are masked.
        """
        import torch

        positions = column - self.padding
        rotation = self.cos[positions][:, None, None], self.sin[positions][:, None, None]
        seen = self.columns[:bound]
        mask = ((seen >= self.padding[:, None]) & (seen <= column[:, None]))[:, None, None]
        groups = self.heads // self.key_heads
        place = column[:, None, None, None].expand(-1, self.key_heads, 1, self.head_dim)

        def put(cache: Any, new: Any) -> None:
            if len(column) == 1:
                cache.index_copy_(2, column, new)  # the quicker one
            else:
                cache.scatter_(2, place, new)

        def attend(q: Any, k: Any, v: Any, keys: Any, values: Any) -> Any:
            put(keys, k)
            put(values, v)
            # The query heads that share a key head stand as so many queries: nothing is repeated in memory.
            q = q.reshape(len(q), self.key_heads, groups, self.head_dim)
            out = torch.nn.functional.scaled_dot_product_attention(
                q, keys[:, :, :bound], values[:, :, :bound], attn_mask=mask.expand(-1, -1, groups, -1)
            )
            return out.reshape(len(q), self.heads, 1, self.head_dim)

        x = self.embed(token[:, None])
        for layer, cache in zip(self.layers, self.cache, strict=True):
            x = self._layer(layer, x, rotation, cache, attend)
        return self.norm(x)[:, 0]

    def _layer(self, layer: Any, x: Any, rotation: tuple[Any, Any], cache: Any, attend: Any) -> Any:
        """One decoder layer. x: [B, T, H]."""
        attention, rows, length = layer.self_attn, x.shape[0], x.shape[1]
        h = layer.input_layernorm(x)
        q, k, v = (
            project(h).view(rows, length, -1, self.head_dim).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        out = attend(_rotate(q, *rotation), _rotate(k, *rotation), v, cache[0], cache[1])
        x = x + attention.o_proj(out.transpose(1, 2).reshape(rows, length, -1))
        return x + layer.mlp(layer.post_attention_layernorm(x))

    def logits(self, hidden: Any, rows: Sequence[range] | None) -> Any:
        """Scores of the ids in `rows`, in that order; None: of the whole vocabulary.

        hidden: [B, H]; returns float32 [B, n], which the caller may change.
        """
        import torch

        if self.turned is not None and len(hidden) <= FEW_ROWS:
            return self.turned.logits(hidden, rows)
        if rows is None:
            return self.head(hidden[:, None])[:, 0].float()
        if type(self.head) is not torch.nn.Linear:
            return take(self.logits(hidden, None), rows)
        weight, bias = self.head.weight, self.head.bias
        parts = [
            torch.nn.functional.linear(
                hidden, weight[r.start : r.stop], None if bias is None else bias[r.start : r.stop]
            )
            for r in rows
        ]
        return torch.cat(parts, dim=1).float()


def _rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Rotary embedding; `sin` has the sign of its first half turned. x: [B, heads, T, D]."""
    import torch

    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, first), dim=-1) * sin
