"""The keys of `train` in the stage ftpo, beside ours of every stage: TRL has no class for it."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class FTPOConfig(TrainingArguments):
    """The numbers of the loss (train/ftpo.py), by default those of the authors' code, and transformers' own keys."""

    margin: float = field(
        default=2.0,
        metadata={"help": "Logits by which a chosen token shall lead the rejected one.", "bounds": "(0, inf)"},
    )
    tau: float = field(
        default=1.0,
        metadata={"help": "Logits within which the pull towards the margin softens.", "bounds": "(0, inf)"},
    )
    lambda_target: float = field(
        default=0.05,
        metadata={"help": "Weight of the tether of chosen and rejected logits to the start.", "bounds": "[0, inf)"},
    )
    eps_target: float = field(
        default=1.0,
        metadata={"help": "Logits that these may move before their tether pulls.", "bounds": "[0, inf)"},
    )
    lambda_nontarget: float = field(
        default=0.4,
        metadata={"help": "Weight of the tether of all other logits to the start.", "bounds": "[0, inf)"},
    )
    logging_steps: float = field(
        default=10,
        metadata={"help": "Steps between two logs; below 1, as a share of all steps."},
    )
