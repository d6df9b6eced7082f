"""Batches of one task each, alternating from one optimizer step to the next."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from ..errors import CLLM4RecError
from .corpora import ContentCorpus, DocumentKey, InteractionCorpus

# documents are sorted by length within pools of so many optimizer steps, so that batches hold little padding
_POOL_STEPS = 8


class AlternatingBatchSampler(Sampler[list[DocumentKey]]):
    """Micro-batches of `DocumentKey`s: all of an optimizer step from one corpus, then all of the next from the other.

    An epoch is one pass over the first corpus, in steps of as equal size as possible (no document is left out or
    repeated). Each of its steps is followed by one of the second corpus, whose own passes go on from epoch to epoch.
    Everything is a function of the seed and the epoch, so an interrupted run continues with the same batches.

    Args:
        corpora: one corpus, or two that alternate.
        batch_size: documents in a micro-batch.
        micro_batches: micro-batches of an optimizer step in each process.
        seed: seed of the order.
        process: which of the processes this one is; each gets its own share of every step's documents.
        processes: number of processes.

    Raises:
        CLLM4RecError: if a corpus has fewer documents than an optimizer step has micro-batches.
    """

    def __init__(
        self,
        corpora: tuple[InteractionCorpus | ContentCorpus, ...],
        batch_size: int,
        micro_batches: int = 1,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
    ):
        parts = micro_batches * processes
        for corpus in corpora:
            if len(corpus) < parts:
                across = f" in {processes} processes" if processes > 1 else ""
                raise CLLM4RecError(
                    f"The {corpus.task} corpus has {len(corpus)} documents, fewer than the {parts} micro-batches "
                    f"of an optimizer step{across}; lower gradient_accumulation_steps"
                )
        self.corpora, self.batch_size, self.micro_batches, self.seed = corpora, batch_size, micro_batches, seed
        self.drop_last = False
        self.epoch = 0
        self.process, self.processes = process, processes
        # no step has fewer documents than micro-batches, if need be at the price of a document more than batch_size
        self._steps = [min(-(-len(c) // (batch_size * parts)), len(c) // parts) for c in corpora]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields; the Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._steps[0] * len(self.corpora) * self.micro_batches

    def __iter__(self) -> Iterator[list[DocumentKey]]:
        first = self._pass(0, self.epoch)
        second: list[list[list[DocumentKey]]] = []
        second_pass = -1
        for step in range(self._steps[0]):
            yield from first[step]
            if len(self.corpora) == 2:
                number, position = divmod(self.epoch * self._steps[0] + step, self._steps[1])
                if number != second_pass:
                    second, second_pass = self._pass(1, number), number
                yield from second[position]

    def _pass(self, corpus: int, reading: int) -> list[list[list[DocumentKey]]]:
        """One pass over a corpus: optimizer steps of micro-batches of keys."""
        lengths = self.corpora[corpus].lengths
        steps = self._steps[corpus]
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, corpus, reading])))
        order = generator.permutation(len(lengths))
        batches = []
        for pool in np.array_split(order, -(-steps // _POOL_STEPS)):
            batches.append(pool[np.argsort(lengths[pool], kind="stable")])
        chunks = np.array_split(np.concatenate(batches), steps)
        shuffled = [chunks[i] for i in generator.permutation(steps)]
        return [
            [
                [DocumentKey(corpus, int(document), reading) for document in micro]
                for micro in np.array_split(chunk, self.micro_batches * self.processes)[self.process :: self.processes]
            ]
            for chunk in shuffled
        ]
