"""What may be measured: each check says in one sentence what is wrong with a model or processor, and what to do."""

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
    """Refuse what its configuration already shows to be unmeasurable, before weights are read.

    Args:
        name: of the model.
        config: its configuration.
        family: of its model type.

    Raises:
        HorizonError: it sees no images, is an encoder-decoder, or is of a family known to be unsafe.
    """
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

    It knows causal attention only, and counts a sliding window in tokens kept instead of positions.

    Args:
        name: of the model.
        attn: attention asked for.
        config: the model's configuration.
        family: of its model type.

    Raises:
        HorizonError: the family or the installation does not allow it.
    """
    if attn != "flash":
        return
    window = sliding_window(config)
    reasons = [f"its {family.bidirectional} attends both ways"] if family.bidirectional else []
    reasons += [f"some layers see {window} tokens back only"] if window else []
    if reasons:
        because = " and ".join(reasons)
        raise HorizonError(f"attention 'flash' is not exact for {name!r} ({family.name}): {because}; choose sdpa")
    if find_spec("flash_attn") is None:
        raise HorizonError(
            "attention 'flash' needs the package flash-attn and a GPU: pip install flash-attn, or choose sdpa"
        )


def check_device_map(name: str, device_map: dict[str, Any] | None) -> None:
    """Refuse layers on several GPUs, where replays have not been proved; main memory and disk beside one are fine.

    Args:
        name: of the model.
        device_map: module -> device, as accelerate placed the model; None where it did not.

    Raises:
        HorizonError: there are several.
    """
    gpus = {str(device).removeprefix("cuda:") for device in (device_map or {}).values()} - {"cpu", "disk", "meta"}
    if len(gpus) > 1:
        raise several_gpus(name, len(gpus), sorted(gpus))


def several_gpus(name: str, n_gpus: int, gpus: Sequence[str] = ()) -> HorizonError:
    """The refusal of a model whose layers lie, or would lie, on several GPUs.

    Args:
        name: of the model.
        n_gpus: how many.
        gpus: their names, where they are known.
    """
    named = f" ({', '.join(gpus)})" if gpus else ""
    return HorizonError(
        f"model {name!r} is spread over {n_gpus} GPUs{named}, where replays have not been proved: make one visible "
        "(CUDA_VISIBLE_DEVICES=0), and with device_map='auto' what does not fit waits in main memory"
    )


def check_processor(name: str, processor: Any, visual_token_ids: tuple[int, ...], n_embeddings: int) -> None:
    """Refuse a processor that was made for another model.

    Args:
        name: of the model.
        processor: its processor.
        visual_token_ids: ids that the model replaces by visual features.
        n_embeddings: rows of its input embedding.

    Raises:
        HorizonError: it has other image tokens, or a larger vocabulary.
    """
    own = [token for kind in ("image", "video") for token in getattr(processor, f"{kind}_token_ids", ())]
    own = [token for token in own if token is not None]
    if own and not set(own) & set(visual_token_ids):
        raise HorizonError(
            f"model {name!r} takes tokens {_listed(visual_token_ids)} for visual ones, and its processor "
            f"({type(processor).__name__}) writes {_listed(own)}: take the processor that belongs to the model"
        )
    vocabulary = getattr(processor.tokenizer, "vocab_size", 0)
    if vocabulary > n_embeddings:
        raise HorizonError(
            f"the tokenizer of {name!r} knows {vocabulary} tokens and the model embeds {n_embeddings}: take the "
            "processor that belongs to the model"
        )


def find_parts(name: str, model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The text decoder and the output embedding of a model.

    Args:
        name: of the model.
        model: the transformers model.

    Raises:
        HorizonError: there is none.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if head is None or not all(hasattr(decoder, part) for part in ("layers", "norm")):
        raise HorizonError(f"model {name!r}: no decoder with layers, final norm and output embedding was found")
    return decoder, head  # type: ignore[return-value]


def check_attending(name: str, layers: nn.ModuleList) -> None:
    """Refuse decoders from whose layers tokens cannot be removed.

    Args:
        name: of the model.
        layers: of its decoder.

    Raises:
        HorizonError: a layer does not attend.
    """
    odd = [k for k, layer in enumerate(layers) if not hasattr(layer, "self_attn")]
    if odd:
        raise HorizonError(
            f"model {name!r}: layer {odd[0]} has no self-attention ({len(odd)} such layers), and removing tokens from "
            "a recurrent or cross-attention layer has no rule here: take a model whose decoder attends in every layer"
        )


def find_visual_tokens(name: str, config: Any) -> tuple[int, ...]:
    """Ids that stand for visual tokens in a prompt, of images and videos.

    Args:
        name: of the model.
        config: its configuration.

    Raises:
        HorizonError: the configuration declares none.
    """
    found = [getattr(config, attribute, None) for attribute in VISUAL_TOKEN_ATTRIBUTES]
    ids = tuple(dict.fromkeys(int(token) for token in found if token is not None))
    if not ids:
        raise HorizonError(f"model {name!r} declares no image token: its visual tokens cannot be found in a prompt")
    return ids


def _listed(tokens: Any) -> str:
    return ", ".join(map(str, sorted(set(tokens))))
