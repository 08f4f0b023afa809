"""SAM and MedSAM: the 314 keys of `sam_vit_b_01ec64.pth` and `medsam_vit_b.pth`.

Only `<SEG>` prompts the decoder, so the embeddings of points, boxes and masks have no place here; the adapters are ours
and in no such file.

Source: Kirillov et al. 2023, Segment Anything, `segment_anything/build_sam.py`; Ma et al. 2024, MedSAM.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from model.config import PathChatConfig
from model.importers.imported import Imported, Piece, Shapes, assemble, check_numbers, depth_of, without_prefix
from model.stored import CheckpointError, Tensors, open_tensors

DECODER = "mask_decoder.decoder."
"""Where our names of SAM's mask decoder begin."""
PARTS = {
    "image_encoder.patch_embed.proj.": "sam_encoder.vit.patch_embed.project.",
    "image_encoder.": "sam_encoder.vit.",
    "prompt_encoder.pe_layer.": "mask_decoder.positions.",
    "prompt_encoder.no_mask_embed.": "mask_decoder.no_mask.",
    "mask_decoder.": "mask_decoder.decoder.",
}
UNUSED = ("prompt_encoder.point_embeddings.", "prompt_encoder.not_a_point_embed.", "prompt_encoder.mask_downscaling.")
OURS = ("_adapter.", "high_res.", "mask_decoder.match.", "mask_decoder.match_evidence.")
"""Parts of our names that no file of SAM has."""


def read_sam(path: Path, config: PathChatConfig, own: Shapes, decoder: bool = True) -> Imported:
    """Read a file of SAM or MedSAM.

    Args:
        path: `.pth` or `.safetensors`; wrapped in `{"model": …}` and with `module.` before its keys where a training
            run wrote it.
        config: what it must fit.
        own: shape of each tensor of the model.
        decoder: take the mask decoder too; without, it starts anew, as the paper says.

    Raises:
        CheckpointError: unreadable; not SAM; another shape than the configuration's; the message names fields or keys.
    """
    where = f"sam {path.name}"
    found = without_prefix(open_tensors(path), ("module.", "_orig_mod.", "sam."))
    if not is_sam(found):
        raise CheckpointError(f"{where}: not a SAM; keys image_encoder.…, mask_decoder.… are accepted")
    check_numbers(where, "sam", guess_sam(found), replace(config.sam, image_px=config.sam_px))
    mine = [n for n in own if n.startswith(("sam_encoder.", "mask_decoder."))]
    pieces = {name: Piece(_theirs(name)) for name in mine if not any(ours in name for ours in OURS)}
    ignored = {key for key in found if key.startswith(UNUSED)}
    tensors = assemble(where, {k: v for k, v in found.items() if k not in ignored}, pieces, own)
    if not decoder:
        left = {n for n in tensors if n.startswith(DECODER)}
        ignored |= {pieces[name].key for name in left}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in left}
    return Imported(
        form="sam",
        files=(path,),
        tensors=tensors,
        used=tuple(sorted(found.keys() - ignored)),
        ignored=tuple(sorted(ignored)),
        fresh=tuple(name for name in mine if name not in tensors),
    )


def is_sam(found: Tensors) -> bool:
    """Whether keys are SAM's."""
    return all(any(key.startswith(part) for key in found) for part in ("image_encoder.", "mask_decoder."))


def _theirs(name: str) -> str:
    """SAM's key of our tensor."""
    for theirs, ours in PARTS.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def guess_sam(found: Tensors) -> dict[str, Any]:
    """Fields of `SamConfig` that the shapes of a SAM file tell; all but the heads of its decoder."""
    told: dict[str, Any] = {"stem": "patch", "depth": depth_of(found, "image_encoder.blocks.")}
    shape = {key.removeprefix("image_encoder."): tensor.shape for key, tensor in found.items()}
    if len(shape.get("patch_embed.proj.weight", ())) == 4:
        told["dim"], told["patch_px"] = shape["patch_embed.proj.weight"][0], shape["patch_embed.proj.weight"][-1]
    if "neck.0.weight" in shape:
        told["out_dim"] = shape["neck.0.weight"][0]
    if "mask_decoder.mask_tokens.weight" in shape:
        told["multimask_outputs"] = shape["mask_decoder.mask_tokens.weight"][0] - 1
    told["decoder_depth"] = depth_of(found, "mask_decoder.transformer.layers.")
    if "mask_decoder.transformer.layers.0.mlp.lin1.weight" in shape:
        told["decoder_mlp_dim"] = shape["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0]
    if "dim" in told and "blocks.0.mlp.lin1.weight" in shape:
        told["mlp_ratio"] = shape["blocks.0.mlp.lin1.weight"][0] / told["dim"]
    if "dim" in told and len(shape.get("pos_embed", ())) == 4:
        told |= _places(shape, told)
    return told


def _places(shape: dict[str, tuple[int, ...]], told: dict[str, Any]) -> dict[str, Any]:
    """What the position embeddings tell: the picture's edge, heads, windows, and which blocks look everywhere."""
    grid = shape["pos_embed"][1]
    relative = {i: shape.get(f"blocks.{i}.attn.rel_pos_h") for i in range(told["depth"])}
    rows = {i: rel for i, rel in relative.items() if rel}
    places = {"image_px": grid * told["patch_px"], "rel_pos": bool(rows)}
    if rows:
        everywhere = tuple(i for i, (n, _) in rows.items() if n == 2 * grid - 1)
        windows = {(n + 1) // 2 for i, (n, _) in rows.items() if i not in everywhere}
        places["heads"] = told["dim"] // rows[min(rows)][1]
        if windows:
            places |= {"window": min(windows), "global_blocks": everywhere}
    return places
