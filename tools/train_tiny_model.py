#!/usr/bin/env python3
"""Train Llamastead Tiny, export it to GGUF and measure it.

    tools/train_tiny_model.py                   train, export, check, evaluate
    tools/train_tiny_model.py --only export     turn the trained folder into the GGUF again
    tools/train_tiny_model.py --only evaluate   measure the trained folder

Needs torch, transformers, tokenizers, safetensors, gguf and, for the check, xllamacpp.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tiny_model import evaluation, export, training
from tiny_model.curriculum import COURSES
from tiny_model.tokenizer import Encoder, load_tokenizer, train_tokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
GGUF_FILE = REPOSITORY / "server" / "llamastead_server" / "models" / "llamastead-tiny-4m.gguf"
STEPS = ("train", "export", "evaluate")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder",
        type=Path,
        default=REPOSITORY / "build" / "llamastead-tiny-4m",
        help="where the Hugging Face form is written and read",
    )
    parser.add_argument("--gguf", type=Path, default=GGUF_FILE, help="where the GGUF is written")
    parser.add_argument("--only", choices=STEPS, action="append", help="run this step alone")
    parser.add_argument("--seed", type=int, default=training.Settings.seed)
    parser.add_argument("--threads", type=int, default=training.Settings.threads)
    parser.add_argument(
        "--course", type=int, action="append", help="teach this course alone; 1 goes on from the folder"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="length of the training, 1.0 for the full curriculum")
    parser.add_argument("--samples", type=int, default=200, help="questions for each skill")
    return parser.parse_args()


def train(folder: Path, settings: training.Settings, chosen: list[int]) -> None:
    """Take a model through the courses; it rests in the folder between two of them."""
    for number in chosen:
        course = COURSES[number]
        torch.manual_seed(settings.seed)
        if number == 0:
            tokenizer = train_tokenizer(settings.seed)
            model = training.new_model(tokenizer)
            print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
        else:
            model, tokenizer = training.load_model(folder), load_tokenizer(folder)
        training.train(
            model,
            Encoder(tokenizer),
            course,
            replace(settings, seed=settings.seed + 100 * number),
            save=partial(training.save_model, model, tokenizer, folder),
            report=partial(print, f"course {number}", flush=True),
        )


def main() -> None:
    """Run the chosen steps."""
    options = arguments()
    steps = options.only or STEPS
    torch.set_num_threads(options.threads)
    if "train" in steps:
        settings = training.Settings(seed=options.seed, threads=options.threads, scale=options.scale)
        train(options.folder, settings, options.course or list(range(len(COURSES))))
    if "export" in steps:
        export.write_gguf(options.folder, options.gguf)
        export.check_gguf(options.folder, options.gguf)
    if "evaluate" in steps:
        model, tokenizer = training.load_model(options.folder), load_tokenizer(options.folder)
        print(evaluation.table(evaluation.evaluate(model, Encoder(tokenizer), options.samples)))


if __name__ == "__main__":
    main()
