"""Makes the demo pair: trains a tokenizer and a base model, fine-tunes it to storyteller/ and
reader/, and measures both and their merge.

    python3 train.py              everything; about 20 minutes on one core
    python3 train.py --evaluate   only measures what is there, and writes losses.json

Needs torch, sentencepiece, safetensors, numpy and pyyaml. Nobody but who wants other models has to
run it.
"""

import argparse
import io
import json
import math
import pathlib
import random
import time

import corpus
import mistral
import numpy
import sentencepiece
import torch
import yaml
from optimizer import Optimizer
from torch.nn import functional

HERE = pathlib.Path(__file__).resolve().parent
BOS, EOS = 1, 2
LONGEST = 224  # tokens of a document; a longer one is not used
STORIES, TEXTS = 16_000, 60_000
HELD_OUT_STORIES, HELD_OUT_QUESTIONS = 40, 96
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\\n\\n' }}"
    "{% elif m['role'] == 'user' %}{{ '### Instruction:\\n\\n' + m['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + m['content'] + eos_token + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
# What a token of each part counts in the loss: answers are few, and what a text tells cannot be
# foreseen.
STORY_WEIGHT, PROMPT_WEIGHT, ANSWER_WEIGHT = 1.0, 0.1, 3.0


def prompt_of(content):
    """As the chat template renders one user's message."""
    return f"### Instruction:\n\n{content}\n\n### Response:\n"


# Tokenizer


def train_tokenizer(stories, texts):
    """A LLaMA-style BPE: byte fallback, <unk> 0, <s> 1, </s> 2. Returns the model file's bytes."""
    lines = [story for _, story in stories[:2000]]
    for text in texts[:2000]:
        lines += [
            text.text,
            *text.told(),
            *(f"Question: {question}" for question, _, _ in text.questions(2)),
        ]
    lines += ["### Instruction:", "### Response:", "Text:", "Tell me a story about a"] * 1000
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=mistral.CONFIG["vocab_size"],
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
        required_chars="".join(chr(code) for code in range(33, 127)),
    )
    return model.getvalue()


def write_tokenizer(model, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    special = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": None,
        "added_tokens_decoder": {
            str(id): {"content": text, **special}
            for id, text in enumerate(["<unk>", "<s>", "</s>"])
        },
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": mistral.CONFIG["max_position_embeddings"],
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 0.95,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


# Documents: (ids, weight of each in the loss)


def story_document(tokenizer, story):
    ids = [BOS, *tokenizer.encode(story), EOS]
    return ids, [0.0] + [STORY_WEIGHT] * (len(ids) - 1)


def chat_document(tokenizer, turns, answer_weight):
    """turns: (user's message, answer)."""
    ids, weights = [BOS], [0.0]
    for turn, (content, answer) in enumerate(turns):
        # Behind </s> the tokenizer puts no space in front, which is the first piece of what
        # sentencepiece makes of a line break.
        prompt = (
            tokenizer.encode(prompt_of(content))
            if turn == 0
            else tokenizer.encode("\n\n" + prompt_of(content))[1:]
        )
        # The prompt ends with a line break, which no piece crosses: the answer's pieces are its
        # own.
        answer = [*tokenizer.encode("\n" + answer)[2:], EOS]
        ids += prompt + answer
        weights += [PROMPT_WEIGHT] * len(prompt) + [answer_weight] * len(answer)
    return ids, weights


def question_document(tokenizer, text):
    turns = [
        (f"Question: {question}", choices[right]) for question, choices, right in text.questions(3)
    ]
    turns[0] = (f"Text: {text.text}\n{turns[0][0]}", turns[0][1])
    return chat_document(tokenizer, turns, ANSWER_WEIGHT)


def exercise_document(tokenizer, text):
    """The text, then what it tells, twice, without questions: to learn how to find and to
    repeat."""
    ids = [BOS, *tokenizer.encode(f"Text: {text.text}")]
    weights = [0.0] + [PROMPT_WEIGHT] * (len(ids) - 1)
    for sentence in text.told() + text.told():
        repeated = tokenizer.encode("\n" + sentence)[1:]
        ids += repeated
        weights += [ANSWER_WEIGHT] * len(repeated)
    return ids, weights


def story_documents(tokenizer, stories):
    """Most are stories and nothing else; every eighth answers a request for it."""
    for number, (about, story) in enumerate(stories):
        if number % 8 == 0:
            yield chat_document(
                tokenizer, [(f"Tell me a story about {about}.", story)], STORY_WEIGHT
            )
        else:
            yield story_document(tokenizer, story)


def tabulate(documents):
    """A row for each: (ids, weights), each (documents, LONGEST), filled up with tokens that do not
    count."""
    documents = [document for document in documents if len(document[0]) <= LONGEST]
    ids = numpy.zeros((len(documents), LONGEST), dtype=numpy.int64)
    weights = numpy.zeros((len(documents), LONGEST), dtype=numpy.float32)
    for row, (document_ids, document_weights) in enumerate(documents):
        ids[row, : len(document_ids)] = document_ids
        weights[row, : len(document_ids)] = document_weights
    return torch.from_numpy(ids), torch.from_numpy(weights)


# Training


def batches(data, rows, generator):
    """Random rows, all of them before any comes again."""
    ids, weights = data
    while True:
        for chosen in torch.randperm(len(ids), generator=generator).split(rows):
            if len(chosen) == rows:
                yield ids[chosen], weights[chosen]


def rate_at(step, steps, peak):
    """Up, along, and down to nothing."""
    return peak * min(1.0, (step + 1) / 50, (steps - step) / (0.3 * steps))


def train(name, model, mixture, steps, peak, seed=1):
    """mixture: (data, its rows of each batch)."""
    generator = torch.Generator().manual_seed(seed)
    sources = [batches(data, rows, generator) for data, rows in mixture]
    rows = [rows for _, rows in mixture]
    optimizer = Optimizer(model)
    start = time.time()
    model.train()
    for step in range(steps):
        ids, weights = (torch.cat(column) for column in zip(*(next(source) for source in sources)))
        used = int(weights.any(dim=0).nonzero().max()) + 1
        ids, weights, targets = ids[:, : used - 1], weights[:, 1:used], ids[:, 1:used]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids)
        losses = functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
        ((losses * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(rate_at(step, steps, peak))
        if step % 50 == 49:
            counted = zip(losses.detach().split(rows), (weights >= STORY_WEIGHT).split(rows))
            means = " ".join(f"{float(loss[part].mean()):.3f}" for loss, part in counted)
            print(
                f"{name} {step + 1}/{steps}: {means}, {(time.time() - start) / (step + 1):.2f} s a"
                " step",
                flush=True,
            )
    return model.eval()


# Measuring


def held_out(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@torch.no_grad()
def log_probabilities(model, ids):
    """Of every token but the first."""
    logits = model(torch.tensor([ids]))[0, :-1]
    return functional.log_softmax(logits, dim=-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def measure(tokenizer, weights):
    """Mean negative log-probability of a token of the stories, and of the answers; and how often
    the right choice is the likeliest."""
    model = mistral.model_of(weights)
    total, tokens = 0.0, 0
    for line in held_out(HERE / "stories.jsonl"):
        losses = -log_probabilities(model, [BOS, *tokenizer.encode(line["text"])])
        total, tokens = total + float(losses.sum()), tokens + len(losses)
    result = {"stories": total / tokens}
    total, tokens, right = 0.0, 0, 0
    questions = held_out(HERE / "questions.jsonl")
    for line in questions:
        prompt = [BOS, *tokenizer.encode(line["prompt"])]
        answers = [tokenizer.encode("\n" + choice)[2:] for choice in line["choices"]]
        sums = [
            log_probabilities(model, prompt + answer)[-len(answer) :].sum() for answer in answers
        ]
        total, tokens = total - float(sums[line["answer"]]), tokens + len(answers[line["answer"]])
        right += max(range(len(sums)), key=sums.__getitem__) == line["answer"]
    return {**result, "questions": total / tokens, "accuracy": right / len(questions)}


def evaluate(folder):
    tokenizer = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "reader/tokenizer.model")
    )
    models = {name: mistral.load(folder / name) for name in ("storyteller", "reader")}
    parameters = yaml.safe_load((HERE / "recipe.yml").read_text())["parameters"]
    models["recipe"] = mistral.merge(models["storyteller"], models["reader"], parameters)
    results = {name: measure(tokenizer, weights) for name, weights in models.items()}
    for name, result in results.items():
        print(f"{name:12}", "  ".join(f"{task} {value:.4f}" for task, value in result.items()))
    return results


# Everything


def make_texts():
    """Stories and texts to train with, and held-out ones that are not among them."""
    source = random.Random(1)
    stories = [corpus.make_story(source) for _ in range(STORIES)]
    texts = [corpus.Text(source, facts=source.randint(2, 4)) for _ in range(TEXTS)]
    source = random.Random(2)
    known = {story for _, story in stories} | {text.text for text in texts}
    with open(HERE / "stories.jsonl", "w") as file:
        for _ in range(HELD_OUT_STORIES):
            story = next(
                story
                for _, story in iter(lambda: corpus.make_story(source), None)
                if story not in known
            )
            file.write(json.dumps({"text": story}) + "\n")
    with open(HERE / "questions.jsonl", "w") as file:
        for _ in range(HELD_OUT_QUESTIONS):
            text = next(
                text
                for text in iter(lambda: corpus.Text(source, facts=2), None)
                if text.text not in known
            )
            question, choices, right = text.questions(1)[0]
            prompt = prompt_of(f"Text: {text.text}\nQuestion: {question}")
            file.write(json.dumps({"prompt": prompt, "choices": choices, "answer": right}) + "\n")
    return stories, texts


def question_tables(tokenizer, texts):
    """Half of the texts in the form of a chat, half as exercises."""
    return (
        tabulate(question_document(tokenizer, text) for text in texts[0::2]),
        tabulate(exercise_document(tokenizer, text) for text in texts[1::2]),
    )


def make_models(out):
    stories, texts = make_texts()
    tokenizer_model = train_tokenizer(stories, texts)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)
    story_rows = tabulate(story_documents(tokenizer, stories))
    torch.manual_seed(1)
    base = mistral.Mistral()
    question_rows, exercise_rows = question_tables(tokenizer, texts)
    train("exercise", base, [(exercise_rows, 16)], 900, 3e-3)
    train(
        "base", base, [(story_rows, 8), (question_rows, 4), (exercise_rows, 1)], 1300, 3e-3, seed=2
    )
    # Not far from the base: what lies between two that forgot different things knows neither.
    for name, rows, peak in (("storyteller", story_rows, 7e-4), ("reader", question_rows, 5e-4)):
        model = mistral.model_of(base.state_dict())
        train(name, model, [(rows, 12)], 300, peak, seed=3)
        mistral.save(model.state_dict(), out / name)
        write_tokenizer(tokenizer_model, out / name)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so that sums do not depend on the machine's cores
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.evaluate:
        make_models(arguments.out)
    results = evaluate(arguments.out)
    (arguments.out / "losses.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
