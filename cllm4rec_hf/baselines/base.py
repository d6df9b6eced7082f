"""What every competitor offers: fit to prepared data, choose on validation, score, save and load."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from ..data.prepared import PreparedData
from ..errors import CLLM4RecError
from . import storage
from .selection import Selection, select


class Baseline:
    """A competitor; `GRID` is what `choose` tries, and names each setting that is worth choosing."""

    model_type: ClassVar[str]
    GRID: ClassVar[list[dict[str, Any]]] = [{}]
    # names of the competitors that `choose` fits to make this one of
    PARTS: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def fit_to(cls, data: PreparedData, seed: int = 0, **settings: Any) -> Any:
        """Fit a model of this class to the training pairs, and the texts that training may read.

        Args:
            data: prepared data; models that are trained step by step also stop by its validation pairs.
            seed: seed of everything random; closed forms need none.
            settings: hyper-parameters.

        Returns:
            The fitted model.

        Raises:
            DataError: if the model needs item texts and there are none.
        """
        raise NotImplementedError

    @classmethod
    def choose(
        cls, data: PreparedData, seed: int = 0, grid: Iterable[Mapping[str, Any]] | None = None, **settings: Any
    ) -> Selection:
        """Fit with each point of a grid, keep what has the highest Recall@20 + Recall@40 + NDCG@100 on validation.

        Args:
            data: prepared data.
            seed: seed of everything random.
            grid: points to try, `GRID` by default.
            settings: further hyper-parameters, the same for all points.

        Returns:
            The best model and the scores of all; `fit_to` with its settings gives the same model.
        """
        points = [{**settings, **point} for point in (cls.GRID if grid is None else grid)]
        return select(lambda **point: cls.fit_to(data, seed, **point), points, data, cls.__name__)

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Scores of all items, higher is better.

        Args:
            users: [B] int user indices.
            histories: item indices of each, oldest first.

        Returns:
            [B, J] float32.

        Raises:
            ValueError: if nothing was fitted.
        """
        raise NotImplementedError


class ArrayBaseline(Baseline):
    """A competitor that is a few settings and arrays: config.json and model.safetensors.

    `SETTINGS` names the constructor's arguments that are stored, `ARRAYS` the attributes that fitting sets.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = ()
    ARRAYS: ClassVar[tuple[str, ...]]

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write config.json and model.safetensors.

        Raises:
            ValueError: if nothing was fitted.
        """
        self._check_fitted()
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        storage.save(directory, self.model_type, settings, {name: getattr(self, name) for name in self.ARRAYS})

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> Any:
        """Read what `save_pretrained` wrote.

        Raises:
            CLLM4RecError: if no such model lies there.
        """
        settings, arrays = storage.load(directory, cls.model_type)
        missing = [name for name in cls.ARRAYS if name not in arrays]
        if missing:
            raise CLLM4RecError(f"The model in {directory} lacks {', '.join(missing)}; fit and save it again")
        model = cls(**settings)
        for name in cls.ARRAYS:
            setattr(model, name, arrays[name])
        return model

    def _check_fitted(self) -> None:
        if getattr(self, self.ARRAYS[0], None) is None:
            name = type(self).__name__
            raise ValueError(f"{name} is not fitted; call fit or {name}.fit_to(data) first")
