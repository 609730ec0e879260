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
_LOWER_IS_BETTER = _LOSS | _vocabulary(
    "nll bce crossentropy err error errors mse rmse msle rmsle mae mape smape wape mase perplexity ppl wer cer eer fid "
    "kl kld divergence regret"
)
_HIGHER_IS_BETTER = _vocabulary(
    "acc accuracy auc auroc aucpr auprc rocauc prauc aucroc ap map precision recall sensitivity specificity f1 f1score "
    "fscore fbeta dice iou miou jaccard r2 r² rsquared bleu rouge psnr ssim reward return kappa mcc ndcg mrr"
)
_QUALITY = _LOWER_IS_BETTER | _HIGHER_IS_BETTER

_VALIDATION = _vocabulary("val valid validation validate validating dev eval evaluation")
_TRAINING = _vocabulary("train training")
_STAGES = _VALIDATION | _TRAINING | {"test"}
_SANITY_CHECK = "sanity"
_LEARNING_RATE = _vocabulary("lr learningrate")

_PHRASES = frozenset({"cross entropy", "f beta", "f score", "learning rate", "r squared", "std dev"})
"""Pairs of words that count as one word, however they are separated."""
_KNOWN = _QUALITY | _STAGES | frozenset(phrase.replace(" ", "") for phrase in _PHRASES)

_NEGATIONS = _vocabulary("neg negative inverse inverted minus")
"""Words that make the meaning of the next word uncertain."""
_QUALIFIERS = _vocabulary(
    "scale scaler scaling weight weights coef coeff coefficient factor threshold gap delta free improvement reduction "
    "drop"
)
"""Words that make the meaning of the previous word uncertain: `loss_scale` is not a loss."""
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
    joined: list[str] = []
    for word in found:
        if joined and f"{joined[-1]} {word}" in _PHRASES:
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _words_of_segment(pieces: list[str]) -> Iterable[str]:
    """The words of a part of a name without separators; the longest known words are joined from its pieces."""
    start = 0
    while start < len(pieces):
        ends = range(len(pieces), start, -1)
        joined = ((end, "".join(pieces[start:end]).lower()) for end in ends)
        end, word = next(((end, word) for end, word in joined if word in _KNOWN), (start + 1, pieces[start].lower()))
        yield from _split_compound(word)
        start = end


def _split_compound(word: str) -> tuple[str, ...]:
    """`valloss` as `val` and `loss`, `bceloss` as `bce` and `loss`; any other word as it is."""
    if word not in _KNOWN:
        for stage in _STAGES:
            if word.startswith(stage) and word.removeprefix(stage) in _QUALITY:
                return stage, word.removeprefix(stage)
        if word.endswith("loss"):
            return word.removesuffix("loss"), "loss"
    return (word,)


def split_loader_suffix(name: str) -> tuple[str, str]:
    """A metric's name, and the suffix that Lightning adds if there are several data loaders."""
    match = re.search(r"/dataloader_idx_\d+$", name)
    return (name[: match.start()], match[0]) if match else (name, "")


# ------------------------------------------------------------------------------------------------------------- meaning


def is_validation_metric(name: str | None) -> bool:
    """Whether validation logs a metric, judging by its name. A metric without a name yet is a validation loss."""
    return name is None or (not _VALIDATION.isdisjoint(words(name)) and _TRAINING.isdisjoint(words(name)))


def mode_of_name(name: str) -> str | None:
    """`"min"` or `"max"`, from the words of a metric's name; None if it has words for neither mode or for both."""
    found = words(name)
    if _is_uncertain(found):
        return None
    lower = not _LOWER_IS_BETTER.isdisjoint(found)
    ranked = any(word == "top" and after.isdigit() for word, after in pairwise(found))
    higher = ranked or not _HIGHER_IS_BETTER.isdisjoint(found)
    return None if lower == higher else "min" if lower else "max"


def is_metric(name: str) -> bool:
    """Whether a name is that of a metric: no learning rate, no counter, and nothing that only a sanity check logs."""
    found = words(name)
    is_rate = name.startswith("lr-") or (not _LEARNING_RATE.isdisjoint(found) and _QUALITY.isdisjoint(found))
    return not (is_rate or found in _COUNTERS or _SANITY_CHECK in found)


def validation_losses(names: Iterable[str]) -> list[str]:
    """The losses among the metrics that a validation logged.

    Of several, those with a word for validation; of several of these, the one that has no other words.
    """
    losses = {name: found for name in names if _is_loss(found := words(name))}
    named = [name for name, found in losses.items() if not _VALIDATION.isdisjoint(found)]
    plain = [name for name in named if (_VALIDATION | _LOSS).issuperset(losses[name])]
    unnamed = [name for name, found in losses.items() if _TRAINING.isdisjoint(found)]
    return plain if len(plain) == 1 else named or unnamed


def _is_loss(found: list[str]) -> bool:
    return not _LOSS.isdisjoint(found) and not _is_uncertain(found)


def _is_uncertain(found: list[str]) -> bool:
    return any(
        (word in _NEGATIONS and after in _QUALITY) or (word in _QUALITY and after in _QUALIFIERS)
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
            known = [one for one in _QUALITY if one[0] == word[0]] if word not in _KNOWN else []
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
