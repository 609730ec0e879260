"""The words of metric names, and their meaning: stage, loss, and whether lower or higher values are better.

Names are written in many ways: `val_loss`, `Validation loss`, `valLoss`, `loss (val)`, `valid_1/RMSELoss`. All
functions of this package that interpret a name use `words`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from optplug.errors import short_list


def _vocabulary(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LOSS = _vocabulary("loss losses")
_ERROR = _LOSS | _vocabulary("err error errors")
_LOWER_IS_BETTER = _ERROR | _vocabulary(
    "nll bce ce crossentropy negativeloglikelihood negloglikelihood mse rmse msle rmsle mae mape smape wape mase "
    "perplexity ppl wer cer eer ece brier crps fid lpips kl kld divergence regret penalty"
)
_HIGHER_IS_BETTER = _vocabulary(
    "acc accuracy auc auroc aucpr aupr auprc rocauc prauc aucroc ap map precision recall sensitivity specificity f1 "
    "f1score fscore fbeta dice iou miou jaccard exactmatch success r2 r² rsquared pearson pearsonr spearman spearmanr "
    "matthews corrcoef kappa mcc bleu rouge meteor cider psnr ssim snr sdr pesq reward return ndcg mrr"
)
_QUALITY = _LOWER_IS_BETTER | _HIGHER_IS_BETTER

_VAL = _vocabulary("val valid validation")
_VALIDATION = _VAL | _vocabulary("validate validating dev eval evaluation")
_TRAINING = _vocabulary("train training")
_STAGES = _VALIDATION | _TRAINING | {"test"}
_SANITY_CHECK = "sanity"
_LEARNING_RATE = _vocabulary("lr learningrate")

_PHRASES = (
    "activation map",
    "attention map",
    "corr coef",
    "cross entropy",
    "exact match",
    "f beta",
    "f score",
    "feature map",
    "learning rate",
    "neg log likelihood",
    "negative log likelihood",
    "r squared",
    "std dev",
)
"""Words that count as one word, however they are separated."""
_KNOWN = _QUALITY | _STAGES | frozenset(phrase.replace(" ", "") for phrase in _PHRASES)

_NEGATIONS = _vocabulary("neg negative inverse inverted minus")
"""Words that make the meaning of all later words uncertain."""
_QUALIFIERS = _vocabulary(
    "scale scaler scaling weight weights factor threshold gap delta free improvement reduction drop"
)
"""Words that make the meaning of the previous word uncertain: `loss_scale` is not a loss."""
_COEFFICIENTS = _vocabulary("coef coefs coeff coeffs coefficient coefficients")
"""Qualifiers of losses only: `dice_coef` is a metric, `kl_coef` is a weight."""
_COMPLEMENT = re.compile(r"(?<!top[\W_])(?<![^\W_])1\s*-(?=\s*[^\W\d])", re.IGNORECASE)
"""`1-` before a word, as in `val_1-acc`, but not in `top_1-acc`."""
_COUNTERS = (["epoch"], ["step"], ["global", "step"])
"""Counters that ModelCheckpoint accepts as a monitor."""

_SEGMENT = re.compile(r"[^\W_]+")
_PIECE = re.compile(r"[A-Z]+(?=[A-Z][^\W\d_A-Z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+")


def words(name: str) -> list[str]:
    """The words of a metric's name, in lower case, without the suffix of a data loader.

    Words end at separators, at digits, and before the upper-case letters of camel case. Known words such as `f1`, `mAP`
    and `IoU` stay whole, and known words without a separator, as in `valloss`, are separated.
    """
    base, _ = split_loader_suffix(name)
    found = [word for segment in _SEGMENT.findall(base) for word in _words_of_segment(_PIECE.findall(segment))]
    text = f" {' '.join(found)} "
    for phrase in _PHRASES:
        text = text.replace(f" {phrase} ", f" {phrase.replace(' ', '')} ")
    return text.split()


def _words_of_segment(pieces: list[str]) -> Iterable[str]:
    """The words of a part of a name without separators; the longest known words are joined from its pieces."""
    start = 0
    while start < len(pieces):
        joined = ((end, "".join(pieces[start:end]).lower()) for end in range(len(pieces), start, -1))
        known = ((end, _known_words(word)) for end, word in joined)
        end, found = next(((end, found) for end, found in known if found), (start + 1, ()))
        yield from found or _split_loss(pieces[start].lower())
        start = end


def _known_words(word: str) -> tuple[str, ...]:
    """A known word, or the two of a compound with a stage: `valloss` as `val` and `loss`; empty for other words."""
    if word in _KNOWN:
        return (word,)
    for stage in _STAGES:
        if word.startswith(stage) and (rest := word.removeprefix(stage)) in _QUALITY:
            return stage, rest
        if word.endswith(stage) and (rest := word.removesuffix(stage)) in _QUALITY:
            return rest, stage
    return ()


def _split_loss(word: str) -> tuple[str, ...]:
    """`bceloss` as `bce` and `loss`; any other word as it is."""
    return (word.removesuffix("loss"), "loss") if word.endswith("loss") else (word,)


def split_loader_suffix(name: str) -> tuple[str, str]:
    """A metric's name, and the suffix that Lightning adds if there are several data loaders."""
    match = re.search(r"/dataloader_idx_\d+$", name)
    return (name[: match.start()], match[0]) if match else (name, "")


# ------------------------------------------------------------------------------------------------------------- meaning


def is_validation_metric(name: str | None) -> bool:
    """Whether validation logs a metric, judging by its name. A metric without a name yet is a validation loss.

    Of the parts between slashes, the last one with a stage counts: `train/val_loss` is a validation metric.
    """
    if name is None:
        return True
    parts = [found for part in name.split("/") if not _STAGES.isdisjoint(found := words(part))]
    return bool(parts) and not _VALIDATION.isdisjoint(parts[-1]) and _TRAINING.isdisjoint(parts[-1])


def is_named_val(name: str | None) -> bool:
    """Whether a metric is a validation metric by the word `val`, `valid` or `validation`.

    Other words for validation, such as `eval`, also name metrics that training code computes at the end of an epoch.
    """
    return is_validation_metric(name) and (name is None or not _VAL.isdisjoint(words(name)))


def mode_of_name(name: str) -> str | None:
    """`"min"` or `"max"`, from the words of a metric's name; None if it has words for neither mode or for both.

    A last word for a loss or an error decides: `dice_loss` is a loss.
    """
    found = words(_COMPLEMENT.sub(" minus ", name))
    if _is_uncertain(found):
        return None
    quality = [word for word in found if word in _QUALITY]
    if quality and quality[-1] in _ERROR:
        return "min"
    lower = not _LOWER_IS_BETTER.isdisjoint(found)
    ranked = any(word == "top" and after.isdigit() for word, after in pairwise(found))
    higher = ranked or not _HIGHER_IS_BETTER.isdisjoint(found)
    return None if lower == higher else "min" if lower else "max"


def is_metric(name: str) -> bool:
    """Whether a name is that of a metric: no learning rate and no counter."""
    found = words(name)
    is_rate = name.startswith("lr-") or (not _LEARNING_RATE.isdisjoint(found) and _QUALITY.isdisjoint(found))
    return not (is_rate or found in _COUNTERS)


def names_sanity_check(name: str) -> bool:
    """Whether a name has a word for the sanity check, so that later validations may use another name."""
    return _SANITY_CHECK in words(name)


def named_validation_losses(names: Iterable[str]) -> list[str]:
    """The losses that have a word for validation."""
    return [name for name in names if _is_loss(found := words(name)) and not _VALIDATION.isdisjoint(found)]


def validation_losses(names: Iterable[str]) -> list[str]:
    """The losses among the metrics that a validation logged.

    Of several, those with a word for validation; of several of these, those with `val`, `valid` or `validation`; of
    several of these, the one that has no other words.
    """
    names = list(names)
    named = named_validation_losses(names)
    named = [name for name in named if not _VAL.isdisjoint(words(name))] or named
    plain = [name for name in named if (_VALIDATION | _LOSS).issuperset(words(name))]
    unnamed = [name for name in names if _is_loss(found := words(name)) and _TRAINING.isdisjoint(found)]
    return plain if len(plain) == 1 else named or unnamed


def _is_loss(found: list[str]) -> bool:
    return not _LOSS.isdisjoint(found) and not _is_uncertain(found)


def _is_uncertain(found: list[str]) -> bool:
    negated = any(word in _NEGATIONS and not _QUALITY.isdisjoint(found[i:]) for i, word in enumerate(found))
    return negated or any(
        (word in _QUALITY and after in _QUALIFIERS) or (word in _LOWER_IS_BETTER and after in _COEFFICIENTS)
        for word, after in pairwise(found)
    )


# ---------------------------------------------------------------------------------------------------------- comparison


def is_near_match(name: str, other: str) -> bool:
    """Whether two names differ only in separators, case, `_epoch`, or an omitted data loader suffix."""
    loaders = {split_loader_suffix(name)[1], split_loader_suffix(other)[1]} - {""}
    return len(loaders) < 2 and _normalized(name) == _normalized(other) != ""


def has_same_words(name: str, other: str) -> bool:
    """Whether two names have the same words in any order, with any word for validation: `val_loss`, `loss (valid)`."""
    meanings = [{"val" if word in _VALIDATION else word for word in words(one)} for one in (name, other)]
    return meanings[0] == meanings[1]


def _normalized(name: str) -> str:
    found = words(name)
    if found[-1:] == ["epoch"] and len(found) > 1:
        found = found[:-1]
    # Two numbers stay apart: 1_0 is not 10.
    return re.sub(r"(?<!\d) | (?!\d)", "", " ".join(found))


def corrected(name: str) -> str | None:
    """A name with one misspelt word replaced by a known word, such as `val_loss` for `val_los`; None without one."""
    import difflib  # imported here because only error messages need it

    for segment in _SEGMENT.finditer(name):
        for piece in _PIECE.finditer(segment[0]):
            word = piece[0].lower()
            if _known_words(word):
                continue
            # A short word resembles many known words.
            known = [one for one in (_QUALITY if len(word) > 4 else _LOSS) if one[0] == word[0]]
            for similar in difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.8):
                start = segment.start() + piece.start()
                new = similar.capitalize() if piece[0].istitle() else similar
                return name[:start] + new + name[start + len(word) :]
    return None


def shown(name: str) -> str:
    """A name for a message: in quotes if it has spaces or other characters that end a word in a sentence."""
    return name if re.fullmatch(r"[\w/.:@-]+", name) else repr(name)


def shown_list(names: Iterable[str]) -> str:
    """A short list of names for a message."""
    return short_list(shown(name) for name in names)
