"""The tiny Orpheus in training: a Llama over the used rows of the vocabulary, its losses, and its sequences."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grammar
import numpy as np
import torch
import torch.nn.functional as F
from codebooks import SIZES, Codebooks
from fast_ops import speed_up_llama
from speech import VOICES, Voice, plan, unnamed
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from units import SHORT_WORDS

from orpheus.format.prompt import Renderer
from orpheus.format.tokens import CODEBOOK_SIZE, FRAME_SLOTS, SLOT_LAYER, Codes, TokenLayout

NAMED = ("tara", "leo", "dan")
SLOT_WEIGHT = 5.0
LAYER_WEIGHT = (3.0, 1.0, 0.4)  # of the three codebooks: words, then colour, then pitch
WRONG_SHARE = 0.04  # of the earlier codes that are replaced in training: a wrong one must not lead astray
READ_LAYER, READ_WEIGHT = 2, 0.3  # where the model must know its place in the text, and what naming it weighs
KEPT, PRACTICE = 0.9, (0.3, 6.0)  # of a word's loss at each step; least and most often that it is practised
SMALL_WORDS = 12.0  # how much oftener small words come in half of the texts in any order: speech is full of them
TEMPERATURE, TOP_P = 0.3, 0.9  # equal sounds have equal codes here, so there is little to draw and nothing to punish
WIDTH_STEP = 32  # batches are padded to multiples of it: few shapes for the compiler
NO_TARGET, STOP = -1, FRAME_SLOTS  # slots of positions without loss, and of end_of_speech and end_of_ai


def tiny_config(tokenizer: Any, layout: TokenLayout) -> LlamaConfig:
    """The shipped model's config: Orpheus' architecture, small."""
    return LlamaConfig(
        vocab_size=layout.audio_start + FRAME_SLOTS * CODEBOOK_SIZE,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=5,
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


class TinyModel:
    """A LlamaForCausalLM whose vocabulary is the text, the used codes of each slot, and one row for all others."""

    def __init__(self, tokenizer: Any, device: str = "cpu") -> None:
        self.tokenizer, self.device = tokenizer, device
        self.layout = TokenLayout.from_tokenizer(tokenizer)
        self.renderer = Renderer(tokenizer, self.layout)
        self.config = tiny_config(tokenizer, self.layout)
        slot_sizes = [SIZES[layer] for layer in SLOT_LAYER]
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
        self.lm = speed_up_llama(LlamaForCausalLM(compact).float().to(device))
        width = self.config.hidden_size
        self.reader = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 2 * width, bias=False)).to(device)
        self.lm.model.layers[READ_LAYER].register_forward_hook(self._keep_middle)
        self.bias = torch.zeros(self.never + 1, device=device)
        self.bias[self.never] = float(np.log(unused))
        forms = [[f" {word}", f" {word.capitalize()}", word.capitalize()] for word in grammar.vocabulary()]
        self.forms = torch.tensor([[tokenizer.encode(form, add_special_tokens=False)[0] for form in row]
                                   for row in forms])  # fmt: skip
        self.missed = torch.ones(self.layout.audio_start, device=device)  # latest loss of the word of each text token

    def autocast(self) -> torch.autocast:
        """Bfloat16 where the processor has it; where it would be imitated, it is 4 times slower than float32."""
        quick = self.device != "cpu" or torch.backends.cpu.get_cpu_capability() in ("AVX512", "AMX")
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=quick)

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
        with self.autocast():
            return self.lm.model(input_ids=ids, use_cache=False).last_hidden_state

    def _full(self, h: Tensor, targets: Tensor, kinds: Tensor, slot_weight: float = 0.0) -> Tensor:
        """Whole-vocabulary loss [N], with a small term that keeps logits near log probabilities.

        `slot_weight` times the loss of the right slot's total probability is added: slips out of a slot are rare
        but end an utterance, so they are worth more than the same probability within the slot.
        """
        with self.autocast():
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
            with self.autocast():
                logits = F.linear(h[at], weight)
            loss = F.cross_entropy(logits.float(), targets[at] - rows.start, reduction="none")
            losses = losses.index_put((at,), loss)
        return losses

    def spoil(self, ids: Tensor, slots: Tensor) -> Tensor:
        """`ids` with some codes replaced by other codes of their slot."""
        spoilt = ids.clone()
        hit = (torch.rand(slots.shape, device=ids.device) < WRONG_SHARE) & (slots >= 0) & (slots != STOP)
        kinds = slots[hit]
        starts = torch.tensor([rows.start for rows in self.slot_rows], device=ids.device)[kinds]
        sizes = torch.tensor([rows.stop - rows.start for rows in self.slot_rows], device=ids.device)[kinds]
        spoilt[:, 1:][hit] = starts + (torch.rand(len(kinds), device=ids.device) * sizes).long()
        return spoilt

    def reading_loss(self, words: Tensor) -> Tensor:
        """Mean loss of naming the word that is being spoken and the next one, from the middle of the last `hidden`.

        `words` [B, T - 1, 2] holds a text token of each, or NO_TARGET. The head that names them is thrown away: it is
        there because a model that is only asked for codes learns the sentences by heart long before it learns to read.
        """
        known = words[..., 0] != NO_TARGET
        if not bool(known.any()):
            return words.new_zeros((), dtype=torch.float32)
        with self.autocast():
            asked = self.reader(self.middle[:, :-1][known]).unflatten(-1, (2, -1))
            logits = F.linear(asked, self.lm.model.embed_tokens.weight[: self.layout.audio_start])
        return F.cross_entropy(logits.float().flatten(0, 1), words[known].flatten())

    def losses(self, ids: Tensor, slots: Tensor, words: Tensor, full_share: float) -> tuple[Tensor, Tensor]:
        """The mean loss of the ids, and `reading_loss`.

        `slots` [B, T - 1] holds the slot of each target ids[:, 1:], or NO_TARGET, or STOP.
        """
        seen = self.spoil(ids, slots)
        h, targets, kinds = self.hidden(seen)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), slots.flatten()
        use = kinds != NO_TARGET
        h, targets, kinds = h[use], targets[use], kinds[use]
        # End_of_speech is chosen against the whole vocabulary, so where it might come (slot 0) is as well.
        full = (torch.rand(len(kinds), device=kinds.device) < full_share) | (kinds == STOP) | (kinds == 0)
        weights = torch.tensor([LAYER_WEIGHT[layer] for layer in SLOT_LAYER] + [LAYER_WEIGHT[0]], device=kinds.device)
        weights = weights[kinds]
        loss = torch.zeros(len(kinds), device=kinds.device)
        loss = loss.index_put((full,), self._full(h[full], targets[full], kinds[full], slot_weight=SLOT_WEIGHT))
        if not bool(full.all()):
            loss = loss.index_put((~full,), self._by_slot(h[~full], targets[~full], kinds[~full]))
        loss = loss * weights
        self._remember(words[..., 0].flatten()[use], loss.detach())
        loss = loss.sum()
        # Once a frame is enough: naming at all seven codes would take a third of the time.
        return loss / weights.sum(), self.reading_loss(words.masked_fill((slots != 0)[..., None], NO_TARGET))

    def _remember(self, words: Tensor, loss: Tensor) -> None:
        """Keep the loss of each word: `words` [N] holds its token, or NO_TARGET."""
        words, loss = words[words != NO_TARGET], loss[words != NO_TARGET]
        size = len(self.missed)
        count, total = torch.bincount(words, minlength=size), torch.bincount(words, loss, size)
        self.missed = torch.where(count > 0, KEPT * self.missed + (1 - KEPT) * total / count.clamp(min=1), self.missed)

    def word_weights(self) -> list[float]:
        """How often each word of the vocabulary should be practised: as it is missed, within limits."""
        missed = self.missed[self.forms].mean(1)
        return (missed / missed.mean()).clamp(*PRACTICE).tolist()

    @torch.no_grad()
    def evaluate(self, batches: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Any]:
        """Held-out figures: loss within each slot, share of right first codes where a word begins, of all first codes,
        whole-vocabulary loss, and probability outside the right slot."""
        self.lm.eval()
        sums, counts, full, slip = np.zeros(FRAME_SLOTS), np.zeros(FRAME_SLOTS), 0.0, 0.0
        right, first, right_first = 0, 0, 0
        for ids, slots, words in batches:
            ids, kinds = ids.to(self.device), slots.flatten().to(self.device)
            use = kinds != NO_TARGET
            h, targets = self.hidden(ids)[:, :-1].flatten(0, 1)[use], ids[:, 1:].flatten()[use]
            kinds = kinds[use]
            full += float(self._full(h, targets, kinds).sum())
            slip += float(self._full(h, targets, kinds, 1.0).sum()) - float(self._full(h, targets, kinds).sum())
            losses = self._by_slot(h, targets, kinds)
            for slot in range(FRAME_SLOTS):
                sums[slot] += float(losses[kinds == slot].sum())
                counts[slot] += int((kinds == slot).sum())
            at = kinds == 0
            rows = self.slot_rows[0]
            good = (h[at].float() @ self.lm.model.embed_tokens.weight[rows].float().t()).argmax(
                1
            ) + rows.start == targets[at]
            named = words[..., 0].flatten()[use.cpu()][at.cpu()]
            begins = torch.cat([torch.ones(1, dtype=torch.bool), named[1:] != named[:-1]]).to(good.device)
            right, first, right_first = (
                right + int(good.sum()),
                first + int(begins.sum()),
                right_first + int(good[begins].sum()),
            )
        self.lm.train()
        total = int(counts.sum())
        return {"loss": float(sums.sum() / total), "slots": (sums / counts).round(3).tolist(), "full": full / total,
                "slip": slip / total, "sounds right": float(right / counts[0]),
                "words begun right": right_first / first}  # fmt: skip

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
        words = [word.lower() for word in grammar.vocabulary()]
        (folder / "words.txt").write_text("\n".join(sorted(words)) + "\n", encoding="utf-8")
        vocabulary = folder / "tokenizer.json"  # without its indentation, a third smaller
        compact = json.dumps(json.loads(vocabulary.read_text("utf-8")), ensure_ascii=False, separators=(",", ":"))
        vocabulary.write_text(compact + "\n", "utf-8")
        GenerationConfig(
            bos_token_id=self.layout.bos,
            eos_token_id=self.layout.end_of_speech,
            pad_token_id=self.layout.pad,
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            repetition_penalty=1.0,
            max_new_tokens=1200,
        ).save_pretrained(folder)


class Sequences:
    """Endless training sequences of the package's renderer, in the compact rows of a TinyModel.

    Nothing is recorded or read from disk: a text's codes are known from the units (`speech`, `codebooks`).
    """

    def __init__(
        self, model: TinyModel, books: Codebooks, seed: int = 0, scrambled: float = 0.8, held_out: bool = False
    ) -> None:
        self.rng, self.scrambled, self.held_out = random.Random(seed), scrambled, held_out
        self.model, self.books, self.pad = model, books, model.layout.pad
        self.longest = 0  # words of the texts; 0: as they come
        self.weights: list[float] | None = None
        self.small = [word.lower() in SHORT_WORDS for word in grammar.vocabulary()]

    def text(self) -> str:
        """A sentence, or words in any order, with a tag here and there."""
        rng = self.rng
        if self.longest:
            return grammar.scrambled(rng, self.longest, self.weights)
        if rng.random() < self.scrambled:
            weights = self.weights
            if weights and not self.held_out and rng.random() < 0.5:
                weights = [w * SMALL_WORDS if small else w for w, small in zip(weights, self.small, strict=True)]
            text = grammar.scrambled(rng, weights=weights)
            for _ in range(rng.choices([0, 1, 2], [75, 20, 5])[0]):
                text = grammar.insert_tag(rng, text, rng.choice(grammar.TAGS))
            return text
        while True:
            text = grammar.tagged_sentence(rng, 0.35)
            if grammar.is_held_out(text) == self.held_out:
                return text

    def voice(self) -> tuple[str | None, Voice]:
        """The name in the prompt and who speaks: a named voice, or some other one with no name or any."""
        rng = self.rng
        name = rng.choices([*NAMED, "", "other"], [24, 24, 24, 20, 8])[0]
        if name in NAMED:
            return name, VOICES[name]
        names = grammar.SLOTS["name"]
        other = rng.choice([word for word in [*names, "Elise"] if word.lower() not in NAMED]) if name else None
        return other, unnamed(rng)

    def example(self) -> tuple[np.ndarray, int, np.ndarray]:
        """A row, the length of its prompt, and `_words`."""
        text, (name, voice) = self.text(), self.voice()
        made = plan(text, voice, self.books.frames)
        codes = Codes(*(level.astype(np.int64) for level in self.books.codes(made)))
        example = self.model.renderer.example(text, codes, name)
        row = self.model.row_of_id[example.input_ids].astype(np.int32)
        prompt = len(row) - FRAME_SLOTS * codes.frames - 2
        return row, prompt, self._words(text, name, made.ends, codes.frames)

    def _words(self, text: str, name: str | None, ends: list[int], frames: int) -> np.ndarray:
        """[frames, 2]: text tokens of the word that each frame speaks and of the one after it.

        A word's token is that of its first letter; after the last word comes end_of_text.
        """
        said = f"{name}: {text}" if name else text
        found = self.model.tokenizer(said, add_special_tokens=False, return_offsets_mapping=True)
        token_of = [token for token, (a, b) in zip(found["input_ids"], found["offset_mapping"], strict=True)
                    for _ in range(b - a)]  # fmt: skip
        shift = len(said) - len(text)
        starts = [match.start() for match in re.finditer(r"(?<!\S)\S", text)]
        tokens = [token_of[shift + at + (not text[at].isalnum())] for at in starts]
        tokens.append(self.model.layout.end_of_text)
        now = np.searchsorted(ends[:-1], np.arange(frames), side="right")
        return np.array(tokens)[np.stack([now, now + 1], 1)]

    def batches(self, tokens: int, pool: int = 256) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(ids [B, T], slots and words of the targets [B, T - 1] and [B, T - 1, 2]), from `pool` sequences at a time.

        A batch has about `tokens` ids, in rows of similar lengths.
        """
        while True:
            self.weights = self.model.word_weights()
            examples = sorted((self.example() for _ in range(pool)), key=lambda example: len(example[0]))
            groups: list[list[tuple[np.ndarray, int, np.ndarray]]] = [[]]
            for example in examples:
                if groups[-1] and (len(groups[-1]) + 1) * len(example[0]) > tokens:
                    groups.append([])
                groups[-1].append(example)
            self.rng.shuffle(groups)
            yield from map(self._batch, groups)

    def _batch(self, group: list[tuple[np.ndarray, int, np.ndarray]]) -> tuple[Tensor, Tensor, Tensor]:
        width = -(-max(len(row) for row, _, _ in group) // WIDTH_STEP) * WIDTH_STEP
        ids = np.full((len(group), width), self.pad, np.int64)
        slots = np.full((len(group), width - 1), NO_TARGET, np.int64)
        words = np.full((len(group), width - 1, 2), NO_TARGET, np.int64)
        for b, (row, start, named) in enumerate(group):
            ids[b, : len(row)] = row
            codes = len(row) - 2 - start
            slots[b, start - 1 : start - 1 + codes] = np.arange(codes) % FRAME_SLOTS
            slots[b, start - 1 + codes : start + 1 + codes] = STOP
            words[b, start - 1 : start - 1 + codes] = np.repeat(named, FRAME_SLOTS, 0)
        return torch.from_numpy(ids), torch.from_numpy(slots), torch.from_numpy(words)
