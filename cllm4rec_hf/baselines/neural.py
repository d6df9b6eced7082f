"""What trained competitors share: configuration, one training loop with early stopping on validation, scoring."""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..data.prepared import Histories, PreparedData
from ..errors import CLLM4RecError
from ..evaluation.evaluator import Evaluator
from .base import Baseline
from .selection import is_main_process, validation_score

logger = logging.getLogger(__name__)


class NeuralConfig(PreTrainedConfig):
    """Settings that all trained competitors have.

    Args:
        num_users: number of users I.
        num_items: number of items J.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        batch_size: users in a step.
        max_epochs: most epochs. An epoch is one pass over the users, or as many as make `min_steps` steps.
        patience: epochs without a better validation score after which training ends.
        min_steps: least optimizer steps of an epoch: bounds in passes alone would end training on small data before
            it has left the plateau where a model knows nothing but popularity.
    """

    num_users: int = 0
    num_items: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 100
    max_epochs: int = 200
    patience: int = 20
    min_steps: int = 25

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("batch_size", "max_epochs", "patience", "min_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration that a config.json holds.

        Raises:
            CLLM4RecError: if it is another model's.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise CLLM4RecError(f"This is a model of type {model_type!r}; expected {cls.model_type!r}")
        return super().from_dict(config_dict, **kwargs)


class NeuralBaseline(Baseline, PreTrainedModel):
    """A competitor that is trained step by step; saved and loaded as any transformers model.

    Subclasses define `item_scores` and `loss`; those with several kinds of steps override `losses`, those with a
    stage before training `pretraining_losses`, and those that read texts `create`.
    """

    config_class: type[NeuralConfig] = NeuralConfig
    base_model_prefix = "baseline"

    # ---- what subclasses define

    def item_scores(self, users: Tensor, histories: Sequence[np.ndarray]) -> Tensor:
        """Logits [B, J] of all items for users [B] int64 with these histories, oldest first."""
        raise NotImplementedError

    def loss(
        self, users: Tensor, histories: Sequence[np.ndarray], done: float, generator: np.random.Generator
    ) -> Tensor:
        """Mean loss over some users.

        Args:
            users: [B] int64 user indices.
            histories: their training items, oldest first; none is empty.
            done: passes over the data that are done, with the fraction of the present one.
            generator: source of what is drawn.

        Returns:
            A scalar.
        """
        raise NotImplementedError

    def losses(self, train: Histories, done: int, generator: np.random.Generator) -> Iterator[Tensor]:
        """The losses of one pass, one for each step: users in random order, batch by batch.

        Args:
            train: training histories.
            done: passes before this one.
            generator: source of what is drawn.
        """
        batches = self.batches(np.flatnonzero(np.diff(train.indptr)), generator)
        for step, batch in enumerate(batches):
            users = torch.from_numpy(batch).to(self.device)
            yield self.loss(users, [train[user] for user in batch], done + step / len(batches), generator)

    def pretraining_losses(self, train: Histories, generator: np.random.Generator) -> Iterator[Tensor]:
        """The losses of a stage before training; none by default."""
        return iter(())

    @classmethod
    def create(cls, data: PreparedData, **settings: Any) -> Any:
        """A fresh model for some data, with what its training reads of the texts.

        Args:
            data: prepared data.
            settings: fields of the configuration.
        """
        return cls(cls.config_class(num_users=data.num_users, num_items=data.num_items, **settings))

    # ---- what all do

    @classmethod
    def fit_to(cls, data: PreparedData, seed: int = 0, **settings: Any) -> Any:
        """Train; the state of the best epoch on validation is kept. See `Baseline.fit_to`.

        Raises:
            FloatingPointError: if the loss is no finite number.
        """
        with torch.random.fork_rng():
            # initial weights and dropout draw from the global generator
            torch.manual_seed(seed)
            model = cls.create(data, **settings).to(default_device())
            model._train(data, np.random.Generator(np.random.PCG64(seed)))
        return model.eval()

    @torch.no_grad()
    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Logits of all items, [B, J] float32; see `Baseline.score`."""
        self.eval()
        indices = torch.from_numpy(np.asarray(users, dtype=np.int64)).to(self.device)
        return self.item_scores(indices, histories).float().cpu().numpy()

    def passes(self, train: Histories) -> int:
        """Passes over the users in an epoch."""
        steps = -(-int(np.count_nonzero(np.diff(train.indptr))) // self.config.batch_size)
        return -(-self.config.min_steps // max(1, steps))

    def batches(self, rows: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        """Some indices in random order, `batch_size` at a time."""
        shuffled = generator.permutation(rows)
        return np.split(shuffled, range(self.config.batch_size, len(shuffled), self.config.batch_size))

    def _train(self, data: PreparedData, generator: np.random.Generator) -> None:
        from tqdm.auto import tqdm

        train, evaluator = data.histories("train"), Evaluator(data, split="validation")
        name, quiet = type(self).__name__, not is_main_process()
        self.train()
        self._steps(tqdm(self.pretraining_losses(train, generator), f"Pretraining {name}", delay=2, disable=quiet))
        # moments of another stage's gradients would mislead the first steps
        optimizer, best, best_epoch, best_state = self._optimizer(), -math.inf, 0, self.state_dict()
        passes = self.passes(train)
        with tqdm(total=self.config.max_epochs, desc=f"Training {name}", unit="epoch", delay=2, disable=quiet) as bar:
            for epoch in range(self.config.max_epochs):
                self.train()
                for done in range(epoch * passes, (epoch + 1) * passes):
                    self._steps(self.losses(train, done, generator), optimizer)
                score, _ = validation_score(self, evaluator)
                if score > best:
                    best, best_epoch = score, epoch
                    best_state = {key: value.clone() for key, value in self.state_dict().items()}
                bar.update()
                bar.set_postfix(validation=f"{score:.4f}", best=f"{best:.4f}")
                if epoch - best_epoch >= self.config.patience:
                    break
        self.load_state_dict(best_state)
        logger.info(
            "%s: epoch %d of %d passes is the best on validation, sum of the metrics %.4f",
            name, best_epoch + 1, passes, best,
        )  # fmt: skip

    def _steps(self, losses: Any, optimizer: torch.optim.Optimizer | None = None) -> None:
        optimizer = optimizer or self._optimizer()
        for loss in losses:
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"The loss of {type(self).__name__} became {loss.item()}; lower the learning_rate, now "
                    f"{self.config.learning_rate:g}"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)


def default_device() -> torch.device:
    """The machine's accelerator, or its CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def one_hot_rows(histories: Sequence[np.ndarray], num_items: int, device: torch.device | str = "cpu") -> Tensor:
    """Rows of the interaction matrix X, [B, J] float32."""
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    items = np.concatenate([*histories, np.empty(0, dtype=np.int32)]).astype(np.int64)
    matrix = torch.zeros(len(histories), num_items)
    matrix[torch.from_numpy(rows), torch.from_numpy(items)] = 1.0
    return matrix.to(device)


def multinomial_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """−Σ_j x_j log softmax(logits)_j, mean over users.

    Args:
        logits: [B, J].
        targets: [B, J], x: ones at the items to predict.
    """
    return -(targets * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ Σ (μ² + σ² − log σ² − 1), mean over rows."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=-1).mean()


def sample_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A draw from N(μ, σ²) that gradients pass through."""
    return mean + torch.randn_like(mean) * (0.5 * log_variance).exp()


def draw_absent(history: np.ndarray, count: int, num_items: int, generator: np.random.Generator) -> np.ndarray:
    """Random items that a history lacks, [count] int64; any items if it lacks none."""
    drawn = generator.integers(num_items, size=count)
    if len(history) < num_items:
        while (present := np.isin(drawn, history)).any():
            drawn[present] = generator.integers(num_items, size=int(present.sum()))
    return drawn


def hold_out(
    histories: Sequence[np.ndarray], shares: tuple[float, float], generator: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Mask a random share of each history.

    Args:
        histories: items of each user, at least one.
        shares: bounds of the share, drawn uniformly for each user; at least one item is masked.
        generator: source of what is drawn.

    Returns:
        What remains, in its order (perhaps nothing), and what was masked.
    """
    visible, masked = [], []
    for history in histories:
        count = max(1, round(generator.uniform(*shares) * len(history)))
        is_masked = np.zeros(len(history), dtype=bool)
        is_masked[generator.choice(len(history), count, replace=False)] = True
        visible.append(history[~is_masked])
        masked.append(history[is_masked])
    return visible, masked
