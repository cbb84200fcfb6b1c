"""The tiny Orpheus in training: a Llama over the used rows of the vocabulary, its losses, and its sequences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.codec.snac import SAMPLES_PER_FRAME
from orpheus.format.prompt import Renderer
from orpheus.format.tokens import CODEBOOK_SIZE, FRAME_SLOTS, SLOT_LAYER, Codes, TokenLayout

if TYPE_CHECKING:
    from audio_set import AudioSet

SLOT_WEIGHT = 5.0
LAYER_WEIGHT = (2.5, 1.25, 0.5)  # of the three codebooks: what is said is in the first two, the last is mostly noise
HIDDEN_SHARE = 0.6  # most of the earlier frames that are hidden from the model in training
READ_LAYER, READ_WEIGHT = (
    3,
    0.3,
)  # where the model must know its place in the text, and what naming it weighs in the loss
WIDTH_STEP = 32  # batches are padded to multiples of it: few shapes for the compiler
NO_TARGET, STOP = -1, FRAME_SLOTS  # slots of positions without loss, and of end_of_speech and end_of_ai


def tiny_config(tokenizer: Any, layout: TokenLayout) -> LlamaConfig:
    """The shipped model's config: Orpheus' architecture, small."""
    return LlamaConfig(
        vocab_size=layout.audio_start + FRAME_SLOTS * CODEBOOK_SIZE,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=6,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=2048,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
        tie_word_embeddings=True,
        bos_token_id=layout.bos,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|end_of_text|>"),
        pad_token_id=layout.pad,
        dtype="bfloat16",
    )


def plain_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Causal attention of right-padded rows in few bfloat16 operations: 3 times PyTorch's CPU kernel in training."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    q = (query * scaling).reshape(batch * groups, heads // groups * length, width)
    k, v = key.reshape(batch * groups, length, width), value.reshape(batch * groups, length, width)
    future = torch.full((length, length), -1e4, dtype=q.dtype, device=q.device).triu(1)
    scores = torch.baddbmm(future.repeat(heads // groups, 1), q, k.transpose(1, 2))
    out = torch.bmm(torch.softmax(scores, -1, dtype=scores.dtype), v)
    return out.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register("plain", plain_attention)


class TinyModel:
    """A LlamaForCausalLM whose vocabulary is the text, the used codes of each slot, and one row for all others."""

    def __init__(self, tokenizer: Any, sizes: list[int], device: str = "cpu") -> None:
        self.tokenizer, self.device = tokenizer, device
        self.layout = TokenLayout.from_tokenizer(tokenizer)
        self.renderer = Renderer(tokenizer, self.layout)
        self.config = tiny_config(tokenizer, self.layout)
        slot_sizes = [sizes[layer] for layer in SLOT_LAYER]
        starts = np.cumsum([self.layout.audio_start, *slot_sizes])
        self.slot_rows = [slice(int(a), int(b)) for a, b in pairwise(starts)]
        self.never = int(starts[-1])
        self.row_of_id = np.full(self.config.vocab_size, self.never)
        self.row_of_id[: self.layout.audio_start] = np.arange(self.layout.audio_start)
        for slot, rows in enumerate(self.slot_rows):
            ids = self.layout.slot_range(slot)
            self.row_of_id[ids[0] : ids[0] + rows.stop - rows.start] = np.arange(rows.start, rows.stop)
        unused = int((self.row_of_id == self.never).sum())
        compact = LlamaConfig(**{**self.config.to_dict(), "vocab_size": self.never + 1, "dtype": "float32"})
        self.lm = LlamaForCausalLM(compact).float().to(device)
        self.lm.set_attn_implementation("plain")
        width = self.config.hidden_size
        self.reader = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 2 * width, bias=False)).to(device)
        self.lm.model.layers[READ_LAYER].register_forward_hook(self._keep_middle)
        self.bias = torch.zeros(self.never + 1, device=device)
        self.bias[self.never] = float(np.log(unused))

    def describe(self) -> str:
        """Sizes, for the log."""
        total = sum(p.numel() for p in self.lm.parameters())
        return f"{total / 1e6:.2f} M parameters in training, {self.never + 1} of {self.config.vocab_size} rows"

    def load(self, folder: Path) -> None:
        """Take the weights that `save` wrote, with the same tokenizer and codes in use."""
        from safetensors.torch import load_file

        state = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
        id_of_row = np.zeros(self.never + 1, np.int64)
        id_of_row[self.row_of_id] = np.arange(len(self.row_of_id))
        name = "model.embed_tokens.weight"
        state[name] = state["lm_head.weight"] = state[name][torch.from_numpy(id_of_row)]
        self.lm.load_state_dict(state)

    def compile(self) -> None:
        """Compile the layers: 1.7 times the tokens a second on a CPU, after half a minute (needs a C++ compiler)."""
        for layer in self.lm.model.layers:
            layer.forward = torch.compile(layer.forward, dynamic=True)

    def _keep_middle(self, layer: Any, inputs: Any, output: Tensor) -> None:
        self.middle = output

    def optimisers(self, lr: float) -> list[torch.optim.Optimizer]:
        """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
        matrices = [p for name, p in self.lm.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in self.lm.named_parameters() if p.ndim != 2 or "embed" in name]
        others += self.reader.parameters()
        return [
            torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]

    def hidden(self, ids: Tensor) -> Tensor:
        """[B, T, H] of right-padded [B, T] rows."""
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            return self.lm.model(input_ids=ids, use_cache=False).last_hidden_state

    def _full(self, h: Tensor, targets: Tensor, kinds: Tensor, slot_weight: float = 0.0) -> Tensor:
        """Whole-vocabulary loss [N], with a small term that keeps logits near log probabilities.

        `slot_weight` times the loss of the right slot's total probability is added: slips out of a slot are rare
        but end an utterance, so they are worth more than the same probability within the slot.
        """
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            logits = F.linear(h, self.lm.model.embed_tokens.weight)
        logits = logits.float() + self.bias
        total = torch.logsumexp(logits, -1)
        loss = total - logits.gather(1, targets[:, None])[:, 0] + 1e-3 * total.square()
        if slot_weight:
            for slot, rows in enumerate(self.slot_rows):
                at = (kinds == slot).nonzero()[:, 0]
                slip = total[at] - torch.logsumexp(logits[at, rows], -1)
                loss = loss.index_add(0, at, slip, alpha=slot_weight)
        return loss

    def _by_slot(self, h: Tensor, targets: Tensor, slots: Tensor) -> Tensor:
        """Loss [N] of each code among the codes of its slot."""
        losses = torch.zeros(len(h), device=h.device)
        sizes = [rows.stop - rows.start for rows in self.slot_rows]
        parts = self.lm.model.embed_tokens.weight.split([self.layout.audio_start, *sizes, 1])[1:-1]
        for slot, (rows, weight) in enumerate(zip(self.slot_rows, parts, strict=True)):
            at = (slots == slot).nonzero()[:, 0]
            with torch.autocast(self.device.split(":")[0], torch.bfloat16):
                logits = F.linear(h[at], weight)
            loss = F.cross_entropy(logits.float(), targets[at] - rows.start, reduction="none")
            losses = losses.index_put((at,), loss)
        return losses

    def hide_frames(self, ids: Tensor, slots: Tensor) -> Tensor:
        """`ids` with some frames covered by `pad`, another share in each row, none in a quarter of them.

        A model that sees all earlier speech learns to guess how it goes on, and reads the text late or never.
        """
        frame = (slots == 0).cumsum(1)
        share = (torch.rand(len(ids), 1, device=ids.device) * 4 / 3 - 1 / 3).clamp(min=0) * HIDDEN_SHARE
        covered = torch.rand(len(ids), slots.shape[1] + 1, device=ids.device) < share
        covered = covered.gather(1, frame) & (slots >= 0) & (slots != STOP)
        return torch.cat([ids[:, :1], ids[:, 1:].masked_fill(covered, self.layout.pad)], 1)

    def reading_loss(self, words: Tensor) -> Tensor:
        """Mean loss of naming the word that is being spoken and the next one, from the middle of the last `hidden`.

        `words` [B, T - 1, 2] holds a text token of each, or NO_TARGET. The head that names them is thrown away: it is
        there because a model that is only asked for codes learns the sentences by heart long before it learns to read.
        """
        known = words[..., 0] != NO_TARGET
        if not bool(known.any()):
            return words.new_zeros((), dtype=torch.float32)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            asked = self.reader(self.middle[:, :-1][known]).unflatten(-1, (2, -1))
            logits = F.linear(asked, self.lm.model.embed_tokens.weight[: self.layout.audio_start])
        return F.cross_entropy(logits.float().flatten(0, 1), words[known].flatten())

    def losses(self, ids: Tensor, slots: Tensor, words: Tensor, full_share: float) -> tuple[Tensor, Tensor]:
        """The mean loss of the ids, and `reading_loss`.

        `slots` [B, T - 1] holds the slot of each target ids[:, 1:], or NO_TARGET, or STOP.
        """
        seen = self.hide_frames(ids, slots)
        h, targets, kinds = self.hidden(seen)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), slots.flatten()
        use = kinds != NO_TARGET
        h, targets, kinds = h[use], targets[use], kinds[use]
        # End_of_speech is chosen against the whole vocabulary, so where it might come (slot 0) is as well.
        full = (torch.rand(len(kinds), device=kinds.device) < full_share) | (kinds == STOP) | (kinds == 0)
        weights = torch.tensor([LAYER_WEIGHT[layer] for layer in SLOT_LAYER] + [LAYER_WEIGHT[0]], device=kinds.device)
        weights = weights[kinds]
        loss = self._full(h[full], targets[full], kinds[full], slot_weight=SLOT_WEIGHT) @ weights[full]
        if not bool(full.all()):
            loss = loss + self._by_slot(h[~full], targets[~full], kinds[~full]) @ weights[~full]
        return loss / weights.sum(), self.reading_loss(words)

    @torch.no_grad()
    def evaluate(self, data: Sequences) -> tuple[float, list[float], float]:
        """Held-out loss within the slots, its seven parts, and the whole-vocabulary loss."""
        self.lm.eval()
        sums, counts, full, n = np.zeros(FRAME_SLOTS), np.zeros(FRAME_SLOTS), 0.0, 0
        for ids, slots, _ in data.batches(4096, shuffle=False):
            ids, kinds = ids.to(self.device), slots.flatten().to(self.device)
            use = kinds != NO_TARGET
            h, targets = self.hidden(ids)[:, :-1].flatten(0, 1)[use], ids[:, 1:].flatten()[use]
            kinds = kinds[use]
            full, n = full + float(self._full(h, targets, kinds).sum()), n + len(kinds)
            losses = self._by_slot(h, targets, kinds)
            for slot in range(FRAME_SLOTS):
                sums[slot] += float(losses[kinds == slot].sum())
                counts[slot] += int((kinds == slot).sum())
        self.lm.train()
        return float(sums.sum() / counts.sum()), list(sums / counts), full / n

    def save(self, folder: Path) -> None:
        """The whole model (every unused audio row is the `never` row) in bfloat16, with tokenizer and configs."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu() for k, v in self.lm.state_dict().items() if k != "lm_head.weight"}
        name = "model.embed_tokens.weight"
        state[name] = state[name][torch.from_numpy(self.row_of_id)]
        tensors = {k: v.bfloat16().contiguous() for k, v in state.items()}
        save_file(tensors, folder / "model.safetensors.tmp", metadata={"format": "pt"})
        (folder / "model.safetensors.tmp").chmod(0o644)
        (folder / "model.safetensors.tmp").replace(folder / "model.safetensors")
        self.config.architectures = ["LlamaForCausalLM"]
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        vocabulary = folder / "tokenizer.json"  # without its indentation, a third smaller
        compact = json.dumps(json.loads(vocabulary.read_text("utf-8")), ensure_ascii=False, separators=(",", ":"))
        vocabulary.write_text(compact + "\n", "utf-8")
        GenerationConfig(
            bos_token_id=self.layout.bos,
            eos_token_id=self.layout.end_of_speech,
            pad_token_id=self.layout.pad,
            do_sample=True,
            temperature=0.6,
            top_p=0.95,
            repetition_penalty=1.1,
            max_new_tokens=1200,
        ).save_pretrained(folder)


class Sequences:
    """Training sequences of the package's renderer, in the compact rows of a TinyModel."""

    def __init__(self, model: TinyModel, audio: AudioSet, codes: list[Codes], seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.model, self.pad = model, model.layout.pad
        self.rows: list[np.ndarray] = []
        self.prompts: list[int] = []
        self.words: list[np.ndarray] = []
        for text, voice, ends_s, utterance in zip(audio.texts, audio.voices, audio.word_ends_s, codes, strict=True):
            example = model.renderer.example(text, utterance, voice or None)
            row = model.row_of_id[example.input_ids].astype(np.int32)
            if (row == model.never).any():
                continue  # one of the codes that are not in use: hardly ever chosen, and left out
            self.rows.append(row)
            self.prompts.append(len(example.input_ids) - FRAME_SLOTS * utterance.frames - 2)
            self.words.append(self._words(text, voice, ends_s, utterance.frames))
        self.tokens = sum(map(len, self.rows))

    def _words(self, text: str, voice: str, ends_s: list[float], frames: int) -> np.ndarray:
        """[frames, 2]: text tokens of the word that each frame speaks and of the one after it.

        A word's token is that of its first letter; after the last word comes end_of_text.
        """
        if not ends_s:  # a set without these times is trained on without this loss
            return np.full((frames, 2), NO_TARGET)
        said = f"{voice}: {text}" if voice else text
        starts = [match.start() for match in re.finditer(r"(?<!\S)\S", text)]
        found = self.model.tokenizer(said, add_special_tokens=False, return_offsets_mapping=True)
        token_of = [token for token, (a, b) in zip(found["input_ids"], found["offset_mapping"], strict=True)
                    for _ in range(b - a)]  # fmt: skip
        shift = len(said) - len(text)
        tokens = [token_of[shift + at + (not text[at].isalnum())] for at in starts]
        tokens.append(self.model.layout.end_of_text)
        middles_s = (np.arange(frames) + 0.5) * SAMPLES_PER_FRAME / SAMPLE_RATE_HZ
        now = np.searchsorted(ends_s[:-1], middles_s)
        return np.array(tokens)[np.stack([now, now + 1], 1)]

    def batches(self, tokens: int, shuffle: bool = True) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One epoch of (ids [B, T], slots and words of the targets [B, T - 1] and [B, T - 1, 2]).

        A batch has about `tokens` ids, in rows of similar lengths.
        """
        lengths = np.array([len(row) for row in self.rows])
        order = np.argsort(lengths + (self.rng.uniform(0, 30, len(lengths)) if shuffle else 0), kind="stable")
        groups: list[list[int]] = [[]]
        for i in order:
            if groups[-1] and (len(groups[-1]) + 1) * lengths[i] > tokens:
                groups.append([])
            groups[-1].append(int(i))
        if shuffle:
            self.rng.shuffle(groups)
        for group in groups:
            width = -(-max(lengths[i] for i in group) // WIDTH_STEP) * WIDTH_STEP
            ids = np.full((len(group), width), self.pad, np.int64)
            slots = np.full((len(group), width - 1), NO_TARGET, np.int64)
            words = np.full((len(group), width - 1, 2), NO_TARGET, np.int64)
            for b, i in enumerate(group):
                row, start = self.rows[i], self.prompts[i]
                ids[b, : len(row)] = row
                codes = len(row) - 2 - start
                slots[b, start - 1 : start - 1 + codes] = np.arange(codes) % FRAME_SLOTS
                slots[b, start - 1 + codes : start + 1 + codes] = STOP
                words[b, start - 1 : start - 1 + codes] = np.repeat(self.words[i], FRAME_SLOTS, 0)
            yield torch.from_numpy(ids), torch.from_numpy(slots), torch.from_numpy(words)
