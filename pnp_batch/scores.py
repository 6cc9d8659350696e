"""The scores that an evaluation adds to the results: what each column is called and says.

One list serves the evaluation that fills them and everything that shows, sorts or plots them.
"""

from __future__ import annotations

from dataclasses import dataclass

HIGHER, LOWER, NEITHER = "higher", "lower", "neither"
TEXT, STRUCTURE, BACKGROUND = "text", "structure", "background"
REASON = "not_scored"
"""The column that says of each null score of a row why it is none."""


@dataclass(frozen=True)
class Score:
    """A column of scores.

    Attributes:
        name: of the column.
        title: for people, short.
        better: whether more of it is better, less, or neither.
        kind: what it tells of: the text followed, the structure or the background kept.
        summary: one line on how it is computed.
    """

    name: str
    title: str
    better: str
    kind: str
    summary: str


SCORES = (
    Score("clip_similarity", "CLIP", HIGHER, TEXT, "cosine of output and prompt"),
    Score(
        "clip_source_similarity",
        "CLIP to source prompt",
        NEITHER,
        TEXT,
        "cosine of output and source prompt",
    ),
    Score(
        "clip_direction",
        "directional CLIP",
        HIGHER,
        TEXT,
        "cosine of the change from source prompt to prompt and from guidance image to output",
    ),
    Score(
        "structure_distance",
        "structure distance",
        LOWER,
        STRUCTURE,
        "mean squared difference of the self-similarities of a ViT's last keys",
    ),
    Score("lpips", "LPIPS", LOWER, STRUCTURE, "perceptual distance to the guidance image"),
    Score("psnr", "PSNR, dB", HIGHER, STRUCTURE, "pixels, against the guidance image"),
    Score("ssim", "SSIM", HIGHER, STRUCTURE, "structural similarity with the guidance image"),
    Score(
        "edge_correlation",
        "edge correlation",
        HIGHER,
        STRUCTURE,
        "Pearson correlation of the edges of output and guidance image",
    ),
    Score("background_lpips", "background LPIPS", LOWER, BACKGROUND, "lpips outside the mask"),
    Score("background_psnr", "background PSNR, dB", HIGHER, BACKGROUND, "psnr outside the mask"),
    Score("background_ssim", "background SSIM", HIGHER, BACKGROUND, "ssim outside the mask"),
    Score(
        "background_mse", "background MSE", LOWER, BACKGROUND, "squared difference outside the mask"
    ),
    Score(
        "world_mask_iou",
        "mask IoU",
        HIGHER,
        STRUCTURE,
        "drawn pictures: the object's mask, read from the output, against the true one",
    ),
    Score("world_colour", "colour", HIGHER, TEXT, "drawn pictures: the object is of that colour"),
    Score("world_scene", "scene", HIGHER, TEXT, "drawn pictures: the scene is the one asked for"),
    Score("world_rendition", "rendition", HIGHER, TEXT, "drawn pictures: drawn as was asked for"),
)
BY_NAME = {score.name: score for score in SCORES}
SCORED_WITH = "scored_with"
"""The column with the keys of the measures that a row has been scored with."""
