"""The reference way of training, plainly, and the documents that both sides of the comparison train on.

float32; prompt and main text padded separately, in two forward passes through the backbone, the second of which
attends to the keys and values of the first; all logits; torch's Adam over whole tables; texts tokenized in the loader,
again at each reading.
"""

import argparse
import inspect
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Steps = list[list[tuple[int, int]]]

# lengths of the training documents of Musical Instruments, 4-core: logarithm of the words of a review (mean and
# standard deviation), and the mean number of items beyond the second of a history
REVIEW_WORDS, HISTORY_ITEMS = (4.06, 0.84), 2.5

PROMPTS = {
    "review": "<user_{user}> writes the following review for <item_{item}>:",
    "item": "The description of <item_{item}> is:",
    "user": "The profile of <user_{user}> is:",
}


def task_of(case: str) -> str:
    """The task of a kind of step."""
    return case.partition(",")[0]


class Documents:
    """Histories and texts, prepared or generated, with the model's tokenizer.

    Args:
        options: the command's options.
        tokenizer: the backbone's own tokenizer.
        vocabulary: rows of the backbone's embedding.
    """

    def __init__(self, options: argparse.Namespace, tokenizer: Any, vocabulary: int):
        import cllm4rec_hf as c

        count, text_count = options.batch * options.steps, options.batch * options.text_steps
        if options.data:
            data = c.PreparedData.load(options.data)
            histories, texts = data.histories("train"), data.texts
        else:
            histories, texts = generated(max(count, text_count, 1000))
        generator = np.random.Generator(np.random.PCG64(1))
        texts = texts.select(generator.permutation(len(texts))[:text_count])
        self.num_users, self.num_items = len(histories), histories.num_items
        self.tokenizer = c.CLLM4RecTokenizer.from_backbone(
            tokenizer, self.num_users, self.num_items, base_vocab_size=vocabulary
        )
        self.prompts = c.PromptBuilder(self.tokenizer)
        self.texts = texts
        self.interactions = {
            task: c.InteractionCorpus(histories, task, min_items=2) for task in ("collaborative", "recommendation")
        }
        for corpus in self.interactions.values():
            chosen = generator.permutation(len(corpus))[:count]
            corpus.users, corpus.lengths = corpus.users[chosen], corpus.lengths[chosen]
        self.content = c.ContentCorpus(texts, self.prompts, options.max_length)
        length = options.max_length
        self.collators = {
            "collaborative": c.CollaborativeCollator(self.prompts, length),
            "recommendation": c.RecommendationCollator(self.prompts, length),
            "content": c.ContentCollator(self.prompts, length),
        }

    def corpus(self, task: str) -> Any:
        """The corpus of a task."""
        return self.content if task == "content" else self.interactions[task]

    def tokens(self, task: str, step: list[tuple[int, int]]) -> int:
        """Tokens of documents (index, reading), without padding."""
        from cllm4rec_hf.data.corpora import DocumentKey

        corpus = self.corpus(task)
        features = [{"task": task, "key": DocumentKey(0, index, reading), **corpus[index]} for index, reading in step]
        return int(self.collators[task](features)["attention_mask"].sum())


def generated(documents: int) -> tuple[Any, Any]:
    """So many histories and reviews, of the lengths of Musical Instruments."""
    from datasets import Dataset

    from cllm4rec_hf import Histories

    generator = np.random.Generator(np.random.PCG64(0))
    items = max(50, documents // 2)
    lists = [
        generator.choice(items, min(items, 2 + int(n)), replace=False)
        for n in generator.geometric(1 / (1 + HISTORY_ITEMS), documents) - 1
    ]
    words = np.exp(generator.normal(*REVIEW_WORDS, documents)).clip(3, 2000).astype(int)
    sentence = "the guitar sound is great and I use it with my old pedal for strings that stay in tune"
    common = sentence.split()
    texts = [" ".join(common[int(k)] for k in generator.integers(0, len(common), n)) for n in words]
    table = {
        "kind": ["review"] * documents, "user": list(range(documents)), "item": [int(row[0]) for row in lists],
        "text": texts,
    }  # fmt: skip
    return Histories.from_lists(lists, items), Dataset.from_dict(table)


class Reference(nn.Module):
    """The reference way of a training step; see the top of this file.

    Args:
        backbone: a float32 language model with its head, frozen.
        documents: the documents.
        micro_batch: documents that go through the model at once.
    """

    def __init__(self, backbone: Any, documents: Documents, micro_batch: int):
        super().__init__()
        self.backbone, self.documents, self.micro_batch = backbone, documents, micro_batch
        self.vocabulary = documents.tokenizer.base_vocab_size
        size = backbone.config.hidden_size
        rows = {"user": documents.num_users, "item": documents.num_items}
        self.tables = nn.ModuleDict(
            {f"{side}_{kind}": nn.Embedding(rows[kind], size) for side in ("l", "c") for kind in rows}
        )
        for table in self.tables.values():
            nn.init.normal_(table.weight, std=0.02)
        # the keyword of the keys and values, which has been renamed
        names = inspect.signature(backbone.get_decoder().forward).parameters
        self.cache = "cache" if "cache" in names else "past_key_values"

    def load(self, task: str, documents: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Read and tokenize documents (index, reading) in micro-batches, each part padded to its longest."""
        from cllm4rec_hf.data.corpora import DocumentKey

        corpus, collator = self.documents.corpus(task), self.documents.collators[task]
        batches = []
        for start in range(0, len(documents), self.micro_batch):
            prompts, mains, targets = [], [], []
            for index, reading in documents[start : start + self.micro_batch]:
                if task == "content":
                    row = self.documents.texts[index]
                    prompt = PROMPTS[row["kind"]].format(user=row["user"], item=row["item"])
                    prompts.append(self._tokens(prompt))
                    room = collator.max_length - self.documents.prompts.content_overhead
                    words = f" {row['text']}"
                    mains.append(self.documents.tokenizer(words, add_special_tokens=False, split_special_tokens=True)
                                 ["input_ids"][:room])  # fmt: skip
                    continue
                # the order and the mask of this reading, as our collator draws them
                key = DocumentKey(0, index, reading)
                drawn = collator([{"key": key, "task": task, **corpus[index]}])
                first = self.documents.prompts.first_item_id
                user = f"<user_{corpus[index]['user']}>"
                if task == "collaborative":
                    items = drawn["labels"][0][drawn["labels"][0] != -100] - first
                    prompts.append(self._tokens(f"{user} has interacted with"))
                    mains.append(self._tokens(" ".join(f"<item_{item}>" for item in items.tolist())))
                else:
                    items = drawn["input_ids"][0][drawn["input_ids"][0] >= first] - first
                    history = " ".join(f"<item_{item}>" for item in items.tolist())
                    prompts.append(self._tokens(f"{user} has interacted with {history}, {user} will interact with"))
                    targets.append((drawn["labels"][0] - first).tolist())
            batch = {"prompt": _padded(prompts, 0), "prompt_mask": _padded([[1] * len(p) for p in prompts], 0)}
            if mains:
                batch |= {"main": _padded(mains, 0), "main_mask": _padded([[1] * len(m) for m in mains], 0)}
            else:
                batch["targets"] = _padded(targets, -1)
            batches.append(batch)
        return batches

    def _tokens(self, text: str) -> list[int]:
        return self.documents.tokenizer(text, add_special_tokens=False)["input_ids"]

    def embed(self, ids: Tensor, side: str) -> Tensor:
        """Embeddings of words and ID tokens."""
        users, items = self.tables[f"{side}_user"], self.tables[f"{side}_item"]
        first_item = self.vocabulary + self.documents.num_users
        is_word, is_item = ids < self.vocabulary, ids >= first_item
        words = self.backbone.get_input_embeddings()(ids * is_word)
        user = users((ids - self.vocabulary) * ~(is_word | is_item))
        item = items((ids - first_item) * is_item)
        return torch.where(is_word.unsqueeze(-1), words, torch.where(is_item.unsqueeze(-1), item, user))

    def loss(self, task: str, batch: dict[str, Tensor], regularize: bool = True) -> Tensor:
        """The sum of the documents' losses."""
        side = "c" if task == "content" else "l"
        decoder = self.backbone.get_decoder()
        prompt, prompt_mask = batch["prompt"], batch["prompt_mask"]
        out = decoder(inputs_embeds=self.embed(prompt, side), attention_mask=prompt_mask, use_cache="main" in batch)
        last = out.last_hidden_state[torch.arange(len(prompt)), prompt_mask.sum(1) - 1]
        if task == "recommendation":
            log_p = (last @ self.tables["l_item"].weight.T).log_softmax(-1)
            targets = batch["targets"]
            total = -(log_p.gather(1, targets.clamp(min=0)) * (targets >= 0)).sum()
            mentioned = [prompt, (targets + self.vocabulary + self.documents.num_users) * (targets >= 0)]
        else:
            main, mask = batch["main"], batch["main_mask"]
            positions = prompt_mask.sum(1, keepdim=True) + torch.arange(main.shape[1])
            keys = {self.cache: out[self.cache if self.cache in out else "past_key_values"]}
            hidden = decoder(
                inputs_embeds=self.embed(main, side), attention_mask=torch.cat([prompt_mask, mask], 1),
                position_ids=positions, use_cache=True, **keys,
            ).last_hidden_state  # fmt: skip
            hidden = torch.cat([last.unsqueeze(1), hidden[:, :-1]], dim=1)
            if task == "content":
                logits, target = self.backbone.get_output_embeddings()(hidden), main
            else:
                logits = hidden @ self.tables["l_item"].weight.T
                target = main - self.vocabulary - self.documents.num_users
            target = target.masked_fill(mask == 0, -100)
            total = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
            mentioned = [prompt, main]
        return total + self.regularization(mentioned, side) if regularize else total

    def regularization(self, mentioned: list[Tensor], side: str) -> Tensor:
        """λ_c/2 · ‖z^l − z^c‖² over each document's distinct users and items, λ_c = 1."""
        total: Any = 0.0
        other = "c" if side == "l" else "l"
        starts = {"user": self.vocabulary, "item": self.vocabulary + self.documents.num_users}
        for row in torch.cat(mentioned, dim=1):
            for kind, start in starts.items():
                count = len(self.tables[f"l_{kind}"].weight)
                rows = torch.unique(row[(row >= start) & (row < start + count)]) - start
                own, fixed = self.tables[f"{side}_{kind}"], self.tables[f"{other}_{kind}"]
                total = total + 0.5 * (own(rows) - fixed(rows).detach()).square().sum()
        return total


def _padded(rows: list[list[int]], value: int) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def run_reference(model: Reference, case: str, steps: Steps) -> float:
    """Train by the reference way on steps of documents; seconds."""
    task, regularize = task_of(case), case != "content"
    side = "c" if task == "content" else "l"
    optimizer = torch.optim.Adam([model.tables[f"{side}_{kind}"].weight for kind in ("user", "item")], lr=1e-3)
    clock = time.perf_counter()
    for step in steps:
        for batch in model.load(task, step):
            (model.loss(task, batch, regularize) / len(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - clock
