"""A training in a process of its own: `python -m tests.training.runner ROOT SET STEPS [resume]`.

The process can be killed at any moment, which is what it is for.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.hosts.standalone.place import StandalonePlace
from extensions_lib.options import checked
from extensions_lib.training.options import TrainingOptions
from extensions_lib.training.runs import Runs

NAME = "killed"


def options(pictures: Path, steps: int) -> TrainingOptions:
    """A short training of everything that has a state: moments, mean, dropout, two components."""
    told = {
        "train_data_dir": str(pictures),
        "output_name": NAME,
        "network_dim": 2,
        "network_dropout": 0.1,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_train_steps": steps,
        "resolution": "64",
        "min_bucket_reso": 32,
        "bucket_reso_steps": 32,
        "shuffle_caption": True,
        "caption_dropout_rate": 0.2,
        "flip_aug": True,
        "noise_offset": 0.05,
        "ema_decay": 0.9,
        "save_state_every_n_steps": 3,
        "save_precision": "float",
        "no_metadata": True,
        "sample_at_first": False,
        "sample_every_n_steps": 1000,
        "validate_every_n_steps": 7,
        "max_validation_steps": 1,
        "sample_prompts": ("a thing --s 1 --w 64 --h 64",),
    }
    return checked(TrainingOptions, told)


def main(root: str, pictures: str, steps: str, resume: str = "") -> None:
    """Trains, and says how it ended."""
    torch.set_num_threads(1)
    runs = Runs(StandalonePlace(StandaloneHost("SD1", root)), Path(root) / "outputs")
    run = runs.resume(NAME) if resume else runs.start(options(Path(pictures), int(steps)))
    run.join()
    print(run.status())


if __name__ == "__main__":
    main(*sys.argv[1:])
