"""What a trainer uploads to the Hub: what `from_pretrained` loads, and nothing else of the output directory."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress

from ..card import CARD_FILE, LOG_FILE, write_card
from ..hub import push, write_checkpoint, writing

logger = logging.getLogger(__name__)


class PushingTrainer(Trainer):
    """A Trainer whose uploads are checkpoints, each in one commit.

    `Trainer` uploads its output directory: with its arguments as a pickle, without the catalog, with a card that tells
    of this machine, and over several commits where that takes long.
    """

    args: Any
    model: Any
    catalog: Any = None
    push_in_progress: Any

    def init_hf_repo(self, token: str | None = None, **kwargs: Any) -> None:  # type: ignore[override]
        """Make the repository, as `Trainer` does.

        Raises:
            HubError: if the Hub refuses, e.g. for want of a token.
        """
        with writing(self.args.hub_model_id or Path(self.args.output_dir).absolute().name):
            super().init_hf_repo(token=token, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing here: `Trainer`'s draft would name local data and paths. Each upload has this package's card.

        What lies in the output directory as README.md is uploaded in its place.
        """

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model in the output directory, and upload it with tokenizer, catalog and README.md in one commit.

        Args:
            commit_message: the commit's message.
            blocking: False uploads in the background.
            token: token with the right to write; `args.hub_token` by default.
            revision: branch; `args.hub_revision` by default.
            private: whether a repository that is made here is private; `args.hub_private_repo` by default.
            kwargs: arguments of `create_model_card`.

        Returns:
            The `CommitInfo` or its future; None in other processes than the first.

        Raises:
            HubError: if the upload fails; nothing of it is to be seen then.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            # transformers 5.20 does not know the argument
            self.init_hf_repo(token=token, **({} if private is None else {"private": private}))
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        return self._push(commit_message or "End of training", blocking, token, revision)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if is_busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"
        # the model is what has just been saved in that folder
        job = self._push(f"Training in progress, {when}", blocking=False)
        job.add_done_callback(lambda done: self._report(done, when))
        if is_busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])  # type: ignore[arg-type]

    def _report(self, job: Any, when: str) -> None:
        # Trainer waits for background uploads without asking how they ended
        if not job.cancelled() and job.exception() is not None:
            logger.warning("The upload of %s to %s failed: %s", when, self.hub_model_id, job.exception())

    def _push(self, message: str, blocking: bool, token: str | None = None, revision: str | None = None) -> Any:
        def write(directory: Path) -> None:
            write_checkpoint(directory, self.accelerator.unwrap_model(self.model), self.processing_class, self.catalog)
            log = {type(self).__name__: self.state.log_history}
            (directory / LOG_FILE).write_text(json.dumps(log, indent=1), encoding="utf-8")
            card = Path(self.args.output_dir or ".") / CARD_FILE
            if card.is_file():
                shutil.copy(card, directory / CARD_FILE)
            write_card(directory, self.hub_model_id)

        return push(
            write,
            str(self.hub_model_id),
            message,
            private=self.args.hub_private_repo,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            blocking=blocking,
        )
