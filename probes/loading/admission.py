"""Admission: each check refuses a model or processor in one sentence that says what is wrong and what to do.

All of them raise HorizonError, and take the model's name for that sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from analyses.runs import HorizonError
from probes.models.families import Family, sliding_window

VISUAL_TOKEN_ATTRIBUTES = ("image_token_id", "video_token_id")


def check_config(name: str, config: Any, family: Family) -> None:
    """Refuse a model without images, an encoder-decoder, or a family that is refused, before weights are read."""
    kind = config.model_type
    if getattr(config, "vision_config", None) is None:
        if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise HorizonError(
                f"model {name!r} ({kind}) has no vision_config, so that its visual tokens cannot be told from its "
                "text: take one of the families that the README lists"
            )
        raise HorizonError(f"model {name!r} ({kind}) has no vision tower: it is a text-only model")
    text = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        raise HorizonError(
            f"model {name!r} ({kind}) is an encoder-decoder, whose visual tokens stay in the encoder: take a "
            "decoder-only model"
        )
    if family.refused:
        raise HorizonError(f"model {name!r} ({kind}) is refused: {family.refused}")


def check_attention(name: str, attn: str, config: Any, family: Family) -> None:
    """Refuse FlashAttention where it cannot be exact, or is not installed.

    FlashAttention knows causal attention only, and counts a sliding window in the tokens of a replay, not in positions.
    """
    if attn != "flash":
        return
    window = sliding_window(config)
    reasons = [f"its {family.bidirectional} attends both ways"] if family.bidirectional else []
    reasons += [f"some layers see {window} tokens back only"] if window else []
    if reasons:
        reason = " and ".join(reasons)
        raise HorizonError(f"attention 'flash' is not exact for {name!r} ({family.name}): {reason}; choose sdpa")
    if find_spec("flash_attn") is None:
        raise HorizonError(
            "attention 'flash' needs the package flash-attn and a GPU: pip install flash-attn, or choose sdpa"
        )


def check_device_map(name: str, device_map: dict[str, Any] | None) -> None:
    """Refuse layers on several GPUs, where replays have not been proved; main memory and disk beside one are fine.

    Args:
        name: the model's name.
        device_map: the device of each module, by name, as accelerate placed them; None for a model in one place.
    """
    gpus = {str(device).removeprefix("cuda:") for device in (device_map or {}).values()} - {"cpu", "disk", "meta"}
    if len(gpus) > 1:
        raise several_gpus(name, len(gpus), sorted(gpus))


def several_gpus(name: str, n_gpus: int, gpus: Sequence[str] = ()) -> HorizonError:
    """Return the error for a model whose layers lie, or would lie, on several GPUs, named by `gpus` if known."""
    listing = f" ({', '.join(gpus)})" if gpus else ""
    return HorizonError(
        f"model {name!r} is spread over {n_gpus} GPUs{listing}, where replays have not been proved: make one visible "
        "(CUDA_VISIBLE_DEVICES=0), and with device_map='auto' what does not fit waits in main memory"
    )


def check_processor(name: str, processor: Any, visual_token_ids: tuple[int, ...], n_embeddings: int) -> None:
    """Refuse a processor that was made for another model: with other image tokens, or a larger vocabulary.

    Args:
        name: the model's name.
        processor: the processor to check.
        visual_token_ids: ids that the model replaces by visual features.
        n_embeddings: number of rows of the model's input embedding.
    """
    processor_ids = [token for kind in ("image", "video") for token in getattr(processor, f"{kind}_token_ids", ())]
    processor_ids = [token for token in processor_ids if token is not None]
    if processor_ids and not set(processor_ids) & set(visual_token_ids):
        raise HorizonError(
            f"model {name!r} takes tokens {_join_ids(visual_token_ids)} for visual ones, and its processor "
            f"({type(processor).__name__}) writes {_join_ids(processor_ids)}: take the processor that belongs to the "
            "model"
        )
    vocabulary = getattr(processor.tokenizer, "vocab_size", 0)
    if vocabulary > n_embeddings:
        raise HorizonError(
            f"the tokenizer of {name!r} knows {vocabulary} tokens and the model embeds {n_embeddings}: take the "
            "processor that belongs to the model"
        )


def find_parts(name: str, model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the text decoder, with layers and final norm, and the output embedding of a transformers model."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if head is None or not all(hasattr(decoder, part) for part in ("layers", "norm")):
        raise HorizonError(f"model {name!r}: no decoder with layers, final norm and output embedding was found")
    return decoder, head  # type: ignore[return-value]


def check_attending(name: str, layers: nn.ModuleList) -> None:
    """Refuse decoders with layers that have no self-attention: tokens cannot be removed from them."""
    gaps = [k for k, layer in enumerate(layers) if not hasattr(layer, "self_attn")]
    if gaps:
        raise HorizonError(
            f"model {name!r}: layer {gaps[0]} has no self-attention ({len(gaps)} such layers), and removing tokens "
            "from a recurrent or cross-attention layer has no rule here: take a model whose decoder attends in every "
            "layer"
        )


def find_visual_tokens(name: str, config: Any) -> tuple[int, ...]:
    """Return the ids that stand for visual tokens of images and videos in a prompt, as the configuration declares."""
    declared_ids = [getattr(config, attribute, None) for attribute in VISUAL_TOKEN_ATTRIBUTES]
    ids = tuple(dict.fromkeys(int(token) for token in declared_ids if token is not None))
    if not ids:
        raise HorizonError(f"model {name!r} declares no image token: its visual tokens cannot be found in a prompt")
    return ids


def _join_ids(tokens: Any) -> str:
    """Return distinct token ids in ascending order, joined by commas."""
    return ", ".join(map(str, sorted(set(tokens))))
