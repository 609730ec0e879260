"""The words of metric names: word boundaries, stage, mode, losses, comparison and misspelling."""

from __future__ import annotations

import pytest

from optplug.config.metric_names import (
    corrected,
    has_same_words,
    is_metric,
    is_named_val,
    is_near_match,
    is_validation_metric,
    mode_of_name,
    names_sanity_check,
    shown,
    validation_losses,
    words,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val_loss", "val loss"),
        ("Validation loss", "validation loss"),
        ("valLoss", "val loss"),
        ("ValidationLoss", "validation loss"),
        ("VALLoss", "val loss"),
        ("VAL_LOSS", "val loss"),
        ("valloss", "val loss"),
        ("val:loss", "val loss"),
        ("loss (val)", "loss val"),
        ("loss@val", "loss val"),
        ("valid_1/rmse", "valid 1 rmse"),
        ("val_loss/dataloader_idx_0", "val loss"),
        ("MSEVal", "mse val"),
        ("RMSELoss", "rmse loss"),
        ("val_bceloss", "val bce loss"),
        ("AUROC", "auroc"),
        ("valAUROC", "val auroc"),
        ("mAP", "map"),
        ("val_mAP50", "val map 50"),
        ("IoU", "iou"),
        ("valmIoU", "val miou"),
        ("val/mIoU", "val miou"),
        ("F1", "f1"),
        ("ValF1Score", "val f1score"),
        ("valR2", "val r2"),
        ("acc@1", "acc 1"),
        ("top5Acc", "top 5 acc"),
        ("cross_entropy", "crossentropy"),
        ("lossval", "loss val"),
        ("valf1", "val f1"),
        ("negative_log_likelihood", "negativeloglikelihood"),
        ("crossEntropy", "crossentropy"),
        ("sanity_check/loss", "sanity check loss"),
        ("interval", "interval"),
        ("損失", "損失"),
        ("%", ""),
    ],
)
def test_words_of_a_name(name: str, expected: str) -> None:
    assert words(name) == expected.split()


LOWER = (
    "val_loss|Validation loss|valLoss|loss (val)|VALLoss|valloss|eval_loss|dev loss|test-loss|valid_1/rmse|MSEVal"
    "|RMSELoss|val.losses|val_loss2|crossEntropy|Word Error Rate|val/lr_loss|val loss/dataloader_idx_1|NLLLoss"
    "|val_totalloss|class_recall_loss|val_dice_loss|val_iou_loss_epoch|val_top1_err|lossval"
    "|negative_log_likelihood|val_neg_log_likelihood|neg_log_likelihood|val_brier|ece|crps|val_lpips|val_ce|valid_1/mse"
)
HIGHER = (
    "Validation Accuracy|valAcc|ValF1Score|val accuracy|AUROC|mAP|val_mAP50|IoU|mIoU|valIoU|F1|top5|acc@1|Acc (val)|R²"
    "|val:AUC|valRecall@10|F score|dice_coef|val_dice_coeff|val_dice_coefficient|kappa_coef|kappa_coefficient"
    "|matthews_corrcoef|MatthewsCorrCoef|top_1-acc|top-1|valid_1/auc|accval|valf1|valmIoU|val_pearson|spearmanr|meteor|CIDEr"
    "|ExactMatch|exact_match|snr|val_sdr|PESQ|success_rate|eval/success|acc_norm|val_aupr"
)
NEITHER = (
    "score|loss_scale|lossScale|accumulated|interval|invalid|evaluate|error_free|free_space|glossy"
    "|mapping|scrap|wrap|value|neg_mse|loss_weight|iou_threshold|top|f|train_std_dev|lossless|macbook|retrieval"
    "|neg_mean_squared_error|val_neg_mean_squared_error|neg_val_loss|negative_log_loss|val_1-acc|1 - accuracy|kl_coef"
    "|loss_coeff|loss_coefficients|val_feature_map_norm|attention_map_entropy|val_reward_penalty|loss_accuracy|f1_weight"
)


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for names, mode in ((LOWER, "min"), (HIGHER, "max"), (NEITHER, None)) for name in names.split("|")],
)
def test_mode_of_name(name: str, mode: str | None) -> None:
    assert mode_of_name(name) == mode


@pytest.mark.parametrize("name", LOWER.split("|")[:8])
@pytest.mark.parametrize("other", ["_", "-", "/", ".", ":", " ", "__"])
def test_any_separator_ends_a_word(name: str, other: str) -> None:
    assert words(name.replace("_", other).replace(" ", other)) == words(name)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("val_loss|Validation loss|valLoss|VALLoss|valAcc|loss (val)|valid_1/rmse|dev loss|eval_loss", True),
        ("validate/loss|evalLoss|MSEVal|valloss|val loss/dataloader_idx_0|std_dev_val", True),
        ("train/val_loss|training/val_loss|train/loss/val|train/val_loss/dataloader_idx_1|lossval", True),
        ("val/train_loss|train/loss|train_val/gap", False),
        ("loss|test-loss|interval|invalid|evaluate|value|retrieval|train_loss|train_val_gap|std_dev|device", False),
    ],
)
def test_validation_metrics_by_name(names: str, expected: bool) -> None:
    assert {name: is_validation_metric(name) for name in names.split("|")} == dict.fromkeys(names.split("|"), expected)


def test_names_that_are_no_metrics() -> None:
    excluded = "lr-Adam|lr-SGD/pg1|lr|learning rate|Learning_Rate|train/lr|epoch|step|Global step"
    kept = "lr_loss|val/lr-loss|LRScore accuracy|epochs_loss|step_loss|lrate"
    assert not [name for name in excluded.split("|") if is_metric(name)]
    assert [name for name in kept.split("|") if not is_metric(name)] == []


def test_names_with_a_word_for_the_sanity_check() -> None:
    named = ["sanity_check_loss", "RunningStage.SANITY_CHECKING/loss", "Sanity loss"]
    assert [name for name in [*named, "val_loss", "insanity_loss"] if names_sanity_check(name)] == named


def test_names_with_the_word_val() -> None:
    named = ["val_loss", "Validation loss", "valid/f1", "train/val_loss"]
    others = ["eval/return", "dev_f1", "validate/loss", "val/train_f1"]
    assert [name for name in named + others if is_named_val(name)] == named


@pytest.mark.parametrize(
    ("logged", "expected"),
    [
        ("validation_loss|reconstruction_loss_validation|kl_local_validation", "validation_loss"),
        ("Validation loss|Validation recon loss", "Validation loss"),
        ("val_loss|test_loss|loss", "val_loss"),
        ("eval_loss|val_loss", "val_loss"),
        ("val_loss|dev_loss|validate_loss", "val_loss"),
        ("val_recon_loss|eval_loss", "val_recon_loss"),
        ("train/val_loss|train/loss", "train/val_loss"),
        ("eval_loss|dev_loss|eval_kl_loss", "eval_loss|dev_loss|eval_kl_loss"),
        ("eval_loss|eval_acc", "eval_loss"),
        ("test-loss", "test-loss"),
        ("loss|acc", "loss"),
        ("val_loss_scale|val_ce_loss", "val_ce_loss"),
        ("val_dice_loss|val_dice", "val_dice_loss"),
        ("val_loss_a|val_loss_b", "val_loss_a|val_loss_b"),
        ("val_loss|valid/loss", "val_loss|valid/loss"),
        ("val_loss/dataloader_idx_0|val_loss/dataloader_idx_1", "val_loss/dataloader_idx_0|val_loss/dataloader_idx_1"),
        ("g_loss|d_loss", "g_loss|d_loss"),
        ("val_glossary|val_interval|train_loss", ""),
    ],
)
def test_validation_losses(logged: str, expected: str) -> None:
    assert validation_losses(logged.split("|")) == [name for name in expected.split("|") if name]


def test_same_words() -> None:
    same = ["val_loss", "Validation loss", "loss (valid)", "eval/loss", "valLoss"]
    assert all(has_same_words(name, other) for name in same for other in same)
    assert not any(has_same_words("val_loss", other) for other in ("loss", "train_loss", "val_loss_2", "val_acc"))


def test_near_matches() -> None:
    same = ["val_loss", "val loss", "valLoss", "Val/Loss", "VALLOSS", "val_loss_epoch", "valLossEpoch"]
    assert all(is_near_match(name, other) for name in same for other in same)
    for name, other in (
        ("val_loss", "val_loss_2"),
        ("acc@1.0", "acc@10"),
        ("損失", "精度"),
        ("%", "+"),
        ("loss", "val_loss"),
    ):
        assert not is_near_match(name, other)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val_los", "val_loss"),
        ("valLos", "valLoss"),
        ("Validation acuracy", "Validation accuracy"),
        ("val/precison@5", "val/precision@5"),
        ("val_score", None),
        ("quality", None),
        ("val_acs", None),
        ("val_cerr", None),
        ("val_bce", None),
        ("val_aupr", None),
    ],
)
def test_misspelt_words_are_corrected(name: str, expected: str | None) -> None:
    assert corrected(name) == expected


def test_names_with_spaces_are_quoted_in_messages() -> None:
    assert [shown(name) for name in ("val_loss/dataloader_idx_0", "Validation loss", "loss (val)")] == [
        "val_loss/dataloader_idx_0",
        "'Validation loss'",
        "'loss (val)'",
    ]
