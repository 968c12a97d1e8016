"""Tokenizers of the two kinds in use, trained on a few words: SentencePiece's BPE as Llama has it, and byte-level BPE.

Each is built as the converted files of such a tokenizer are, and told nothing about the words that tests ask for
beyond how often they occur.
"""

from __future__ import annotations

import json

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

WORDS = [
    "yes",
    "Yes",
    "YES",
    "no",
    "No",
    "NO",
    "red",
    "Red",
    "blue",
    "Blue",
    "stop",
    "Stop",
    "STOP",
    "cat",
    "dog",
    "the",
]
LETTERS = ["A", "B", "C", "D", "a", "b", "c", "d"]
ENDS = ("USER:", "ASSISTANT:", "assistant\n")
# how Qwen2 cuts a text before any merge: words with the space before them, digits one by one
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _corpus() -> list[str]:
    spaced = [f" {word}" for word in (*WORDS, *LETTERS)]
    return [*spaced * 8, *WORDS * 8, *LETTERS * 8, *ENDS * 8, *(str(number) for number in range(100))]


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """A space is put before the text, spaces are "▁", no digit is merged, unknown characters fall back to bytes."""
    trained = Tokenizer(BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    # "ASSISTANT:Yes" is cut at the colon, as a vocabulary of a real size would have it
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Split(Regex(r"▁\w+|\w+"), "isolated")]
    )
    trained.train_from_iterator(_corpus(), BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"]))
    model = json.loads(trained.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    vocabulary.setdefault("▁", len(vocabulary))
    del vocabulary["\n"]  # a newline is a byte there
    vocabulary = {piece: place for place, piece in enumerate(vocabulary)}
    merges = [tuple(pair) for pair in model["merges"] if "\n" not in "".join(pair)]
    built = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=built, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A space belongs to the word after it, none is put before the text, and a digit stands alone."""
    built = Tokenizer(BPE())
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    built.train_from_iterator(_corpus(), BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<|im_end|>", pad_token="<|endoftext|>")
