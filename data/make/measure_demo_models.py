"""Measure the demo models on the sample sets: first answer tokens right, by kind, with and without the image.

    python data/make/measure_demo_models.py

prints a table and writes data/demo-models.json. Beside each accuracy stands what the question alone gives away: how
often its commonest answer is right, counted over many simulated pictures.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported, which reads it once

import numpy as np
import torch
from PIL import Image
from render_demo_samples import SAMPLES, DemoSample, draw_question, draw_text_content
from transformers import AutoProcessor, BatchFeature, LlavaForConditionalGeneration, LlavaProcessor

DATA = Path(__file__).parents[1]
MODELS = DATA / "demo-models"
RECORD = DATA / "demo-models.json"
SIMULATION_SEED = 515_151
SIMULATED_A_KIND = 20_000
BATCH = 64


@dataclass(frozen=True)
class Accuracy:
    """Shares of first answer tokens that are right.

    Attributes:
        n: samples.
        first: with the image.
        blind: with all visual tokens removed before the first layer.
        question_only: expected for whoever knows the commonest answer to each question, and not the picture.
    """

    n: int
    first: float
    blind: float
    question_only: float


Answers = Callable[[BatchFeature], torch.Tensor]


def read_set(name: str) -> list[DemoSample]:
    """Read one of the sample sets, "ocr" or "vqa"."""
    lines = (SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [DemoSample(**json.loads(line)) for line in lines]


def read_image(sample: DemoSample) -> Image.Image:
    """Read the picture of a sample."""
    with Image.open(SAMPLES / sample.image) as image:
        return image.convert("RGB")


def load(name: str) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load a demo model in float32, and its processor, the way any checkpoint is loaded."""
    model = LlavaForConditionalGeneration.from_pretrained(MODELS / name, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(MODELS / name)


def encode(processor: LlavaProcessor, samples: list[DemoSample]) -> Iterator[tuple[np.ndarray, BatchFeature]]:
    """Encode samples in batches of equal length, so that no batch is padded.

    Yields:
        (sample,) indices into `samples`, and their inputs.
    """
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}],
            add_generation_prompt=True,
        )
        for sample in samples
    ]
    lengths = np.array([len(ids) for ids in processor.tokenizer(prompts).input_ids])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for batch in np.array_split(rows, -(-len(rows) // BATCH)):
            images = [read_image(samples[row]) for row in batch]
            yield batch, processor(images=images, text=[prompts[row] for row in batch], return_tensors="pt")


@torch.no_grad()
def answer(model: LlavaForConditionalGeneration, inputs: BatchFeature) -> torch.Tensor:
    """The first answer token of each sample: (sample,) int."""
    return model(**inputs, use_cache=False).logits[:, -1].argmax(-1)


@torch.no_grad()
def answer_blind(model: LlavaForConditionalGeneration, inputs: BatchFeature) -> torch.Tensor:
    """The same with all visual tokens deleted before layer 0, while the others keep their positions."""
    is_visual = inputs["input_ids"] == model.config.image_token_index
    assert (is_visual == is_visual[:1]).all()  # prompts of equal length have their image at the same place
    (kept,) = torch.nonzero(~is_visual[0], as_tuple=True)
    token_ids = inputs["input_ids"][:, kept]
    states = model.model.language_model(
        inputs_embeds=model.get_input_embeddings()(token_ids),
        # explicit: without it, transformers takes the gap in the positions for a border between packed sequences
        attention_mask=torch.ones_like(token_ids),
        position_ids=kept.expand(len(token_ids), -1),
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(states[:, -1]).argmax(-1)


def first_token_right(processor: LlavaProcessor, samples: list[DemoSample], answers: Answers) -> np.ndarray:
    """Tell for each sample whether the first token of the answer is right: (sample,) bool."""
    gold = [processor.tokenizer(sample.answers[0], add_special_tokens=False).input_ids[0] for sample in samples]
    right = np.zeros(len(samples), bool)
    for rows, inputs in encode(processor, samples):
        right[rows] = answers(inputs).numpy() == np.array(gold)[rows]
    return right


def question_priors(kinds: list[str], n_simulated: int) -> dict[tuple[str, str], float]:
    """How often the commonest first word of the answer is right, by kind and question.

    Args:
        kinds: kinds of questions.
        n_simulated: questions to draw of each kind.
    """
    text_kinds = {sample.category for sample in read_set("ocr")} | {"text_color"}
    priors = {}
    for kind in kinds:
        generator = np.random.default_rng([SIMULATION_SEED, *kind.encode()])
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for _ in range(n_simulated):
            content = draw_text_content(generator) if kind in text_kinds else "scene"
            _, question = draw_question(generator, kind, content)
            counts[question.words][question.answer.split()[0]] += 1
        for words, answers in counts.items():
            priors[kind, words] = answers.most_common(1)[0][1] / answers.total()
    return priors


def measure(name: str, samples: list[DemoSample], priors: dict[tuple[str, str], float]) -> dict[str, Accuracy]:
    """Accuracies of one model on one set, by kind, with "all" first."""
    model, processor = load(name)
    right = first_token_right(processor, samples, partial(answer, model))
    right_blind = first_token_right(processor, samples, partial(answer_blind, model))
    prior = np.array([priors[sample.category, sample.question] for sample in samples])
    kinds = np.array([sample.category for sample in samples])

    def accuracy(rows: np.ndarray) -> Accuracy:
        shares = (round(float(values[rows].mean()), 4) for values in (right, right_blind, prior))
        return Accuracy(int(rows.sum()), *shares)

    return {"all": accuracy(np.full(len(samples), True))} | {
        kind: accuracy(kinds == kind) for kind in dict.fromkeys(kinds.tolist())
    }


def print_table(name: str, task_type: str, accuracies: dict[str, Accuracy]) -> None:
    """Print the accuracies of one model on one set."""
    print(f"\n{name}, {task_type}\n{'kind':12} {'n':>4} {'first':>6} {'blind':>6} {'question only':>14}")
    for kind, row in accuracies.items():
        print(f"{kind:12} {row.n:4d} {row.first:6.3f} {row.blind:6.3f} {row.question_only:14.3f}")


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RECORD, help="where to write (default: %(default)s)")
    arguments = parser.parse_args()
    record: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    sets = {name: read_set(name) for name in ("ocr", "vqa")}
    kinds = sorted({sample.category for samples in sets.values() for sample in samples})
    priors = question_priors(kinds, SIMULATED_A_KIND)
    for name in sorted((path.name for path in MODELS.iterdir()), key=lambda name: int(name.split("-")[1])):
        record[name] = {}
        for task_type, samples in sets.items():
            accuracies = measure(name, samples, priors)
            print_table(name, task_type, accuracies)
            record[name][task_type] = {kind: asdict(row) for kind, row in accuracies.items()}
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
