"""CLLM4Rec as a native extension of HuggingFace transformers: recommend with a frozen pretrained language model.

Public names are loaded when they are first used, so that importing the package costs no more than importing
transformers. Importing it makes `AutoConfig`, `AutoTokenizer`, `AutoModel` and `pipeline("recommendation")` know
CLLM4Rec checkpoints.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import _registration

__version__ = "0.1.0"

_HOMES = {
    "modeling.configuration_cllm4rec": ["CLLM4RecConfig"],
    "modeling.modeling_cllm4rec": [
        "CLLM4RecForCollaborative",
        "CLLM4RecForContent",
        "CLLM4RecForRecommendation",
        "CLLM4RecModel",
        "CLLM4RecOutput",
    ],
    "modeling.quantization_cllm4rec": ["quantization_config"],
    "tokenization.tokenization_cllm4rec": ["CLLM4RecTokenizer"],
    "data.catalog": ["Catalog"],
    "data.collators": ["CollaborativeCollator", "ContentCollator", "RecommendationCollator"],
    "data.corpora": ["ContentCorpus", "InteractionCorpus"],
    "data.prepared": ["Histories", "PreparedData"],
    "data.prompts": ["PromptBuilder"],
    "evaluation.evaluator": ["EvaluationResult", "Evaluator"],
    "baselines.bert4rec": ["BERT4Rec", "BERT4RecConfig"],
    "baselines.blend": ["Blend"],
    "baselines.cllm4rec_emb": ["CLLM4RecEmb", "CLLM4RecEmbConfig"],
    "baselines.cornac_sasrec": ["CornacSASRec"],
    "baselines.ease": ["EASE", "TextEASE"],
    "baselines.implicit_als": ["ImplicitALS"],
    "baselines.lightgcn": ["LightGCN", "LightGCNConfig"],
    "baselines.m6_retrieval": ["M6Retrieval"],
    "baselines.md_cvae": ["MDCVAE", "MDCVAEConfig"],
    "baselines.mult_vae": ["MultVAE", "MultVAEConfig"],
    "baselines.popularity": ["Popularity"],
    "baselines.pseudo_ids": ["PseudoIds", "PseudoIdsConfig"],
    "baselines.registry": ["baseline_class", "load_baseline"],
    "baselines.s3rec": ["S3Rec", "S3RecConfig"],
    "baselines.text_svd": ["TextSVD"],
    "baselines.tfidf": ["TfidfNeighbours"],
    "baselines.two_tower": ["TwoTower", "TwoTowerConfig"],
    "baselines.yes_no": ["YesNo", "YesNoConfig"],
    "inference.pipeline": ["RecommendationPipeline"],
    "inference.ranker": ["ModelRanker"],
    "inference.recommender": ["Recommender"],
    "inference.requests": ["Request"],
    "trainers.arguments": ["ContentArguments", "MutualRegularizationArguments", "RecommendationArguments"],
    "trainers.content": ["ContentTrainer"],
    "trainers.mutual_regularization": ["MutualRegularizationTrainer"],
    "trainers.recommendation": ["RecommendationTrainer"],
    "errors": ["CLLM4RecError", "DataError", "HubError", "UnknownIdError"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from .baselines.bert4rec import BERT4Rec as BERT4Rec
    from .baselines.bert4rec import BERT4RecConfig as BERT4RecConfig
    from .baselines.blend import Blend as Blend
    from .baselines.cllm4rec_emb import CLLM4RecEmb as CLLM4RecEmb
    from .baselines.cllm4rec_emb import CLLM4RecEmbConfig as CLLM4RecEmbConfig
    from .baselines.cornac_sasrec import CornacSASRec as CornacSASRec
    from .baselines.ease import EASE as EASE
    from .baselines.ease import TextEASE as TextEASE
    from .baselines.implicit_als import ImplicitALS as ImplicitALS
    from .baselines.lightgcn import LightGCN as LightGCN
    from .baselines.lightgcn import LightGCNConfig as LightGCNConfig
    from .baselines.m6_retrieval import M6Retrieval as M6Retrieval
    from .baselines.md_cvae import MDCVAE as MDCVAE
    from .baselines.md_cvae import MDCVAEConfig as MDCVAEConfig
    from .baselines.mult_vae import MultVAE as MultVAE
    from .baselines.mult_vae import MultVAEConfig as MultVAEConfig
    from .baselines.popularity import Popularity as Popularity
    from .baselines.pseudo_ids import PseudoIds as PseudoIds
    from .baselines.pseudo_ids import PseudoIdsConfig as PseudoIdsConfig
    from .baselines.registry import baseline_class as baseline_class
    from .baselines.registry import load_baseline as load_baseline
    from .baselines.s3rec import S3Rec as S3Rec
    from .baselines.s3rec import S3RecConfig as S3RecConfig
    from .baselines.text_svd import TextSVD as TextSVD
    from .baselines.tfidf import TfidfNeighbours as TfidfNeighbours
    from .baselines.two_tower import TwoTower as TwoTower
    from .baselines.two_tower import TwoTowerConfig as TwoTowerConfig
    from .baselines.yes_no import YesNo as YesNo
    from .baselines.yes_no import YesNoConfig as YesNoConfig
    from .data.catalog import Catalog as Catalog
    from .data.collators import CollaborativeCollator as CollaborativeCollator
    from .data.collators import ContentCollator as ContentCollator
    from .data.collators import RecommendationCollator as RecommendationCollator
    from .data.corpora import ContentCorpus as ContentCorpus
    from .data.corpora import InteractionCorpus as InteractionCorpus
    from .data.prepared import Histories as Histories
    from .data.prepared import PreparedData as PreparedData
    from .data.prompts import PromptBuilder as PromptBuilder
    from .errors import CLLM4RecError as CLLM4RecError
    from .errors import DataError as DataError
    from .errors import HubError as HubError
    from .errors import UnknownIdError as UnknownIdError
    from .evaluation.evaluator import EvaluationResult as EvaluationResult
    from .evaluation.evaluator import Evaluator as Evaluator
    from .inference.pipeline import RecommendationPipeline as RecommendationPipeline
    from .inference.ranker import ModelRanker as ModelRanker
    from .inference.recommender import Recommender as Recommender
    from .inference.requests import Request as Request
    from .modeling.configuration_cllm4rec import CLLM4RecConfig as CLLM4RecConfig
    from .modeling.modeling_cllm4rec import CLLM4RecForCollaborative as CLLM4RecForCollaborative
    from .modeling.modeling_cllm4rec import CLLM4RecForContent as CLLM4RecForContent
    from .modeling.modeling_cllm4rec import CLLM4RecForRecommendation as CLLM4RecForRecommendation
    from .modeling.modeling_cllm4rec import CLLM4RecModel as CLLM4RecModel
    from .modeling.modeling_cllm4rec import CLLM4RecOutput as CLLM4RecOutput
    from .modeling.quantization_cllm4rec import quantization_config as quantization_config
    from .tokenization.tokenization_cllm4rec import CLLM4RecTokenizer as CLLM4RecTokenizer
    from .trainers.arguments import ContentArguments as ContentArguments
    from .trainers.arguments import MutualRegularizationArguments as MutualRegularizationArguments
    from .trainers.arguments import RecommendationArguments as RecommendationArguments
    from .trainers.content import ContentTrainer as ContentTrainer
    from .trainers.mutual_regularization import MutualRegularizationTrainer as MutualRegularizationTrainer
    from .trainers.recommendation import RecommendationTrainer as RecommendationTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


_registration.install()
