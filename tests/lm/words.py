"""A tokenizer whose tokens are whole words, so that expected tokens can be written by hand."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = ["<eos>", "<bos>", "<unk>", "user:", "assistant:", "a", "b", "c", "d", "e", "f", "g", "ab", ";"]
EOS, BOS, USER, ASSISTANT, A, B, C, D, E, F, G, AB, END = 0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }} "
    "{% if message.role == 'assistant' %}<eos> ; {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Writes `assistant: answer <eos> ;`: the last token stands behind the end of the turn."""


def word_tokenizer(*, special: str = "$A", template: str | None = None) -> PreTrainedTokenizerFast:
    """Splits at spaces. `special` is what surrounds a text, such as `<bos> $A <eos>`; pad is eos."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" +"), behavior="removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=special, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", pad_token="<eos>"
    )
    wrapped.chat_template = template
    return wrapped


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2, Mistral and Gemma have: a space is the beginning of a word, and the first of a text is not shown."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    raw.train_from_iterator(["the answer is four and the cat sat"] * 3, trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
