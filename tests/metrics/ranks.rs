//! ROC-AUC.

use super::{close, fixture, numbers};
use sparse_engine::metrics::{auroc, max_softmax};

#[derive(serde::Deserialize)]
pub struct Case {
    name: String,
    positive: Vec<f64>,
    negative: Vec<f64>,
    auroc: f64,
}

#[test]
fn equal_to_scikit_learn() {
    let cases = fixture().auroc;
    assert_eq!(cases.len(), 7);
    for case in cases {
        let got = auroc(&case.positive, &case.negative).unwrap();
        close(got, case.auroc, 1e-14, &case.name);
        close(auroc(&case.negative, &case.positive).unwrap(), 1.0 - case.auroc, 1e-14, &case.name);
        // By its meaning: all pairs.
        let mut wins = 0.0;
        for p in &case.positive {
            for n in &case.negative {
                wins += if p > n { 1.0 } else { f64::from(u8::from(p == n)) / 2.0 };
            }
        }
        assert_eq!(got, wins / (case.positive.len() * case.negative.len()) as f64, "{}", case.name);
    }
}

#[test]
fn equal_sets_give_a_half_exactly() {
    for n in [1, 2, 3, 7, 100, 9_973] {
        let mut number = numbers(n);
        for levels in [1.0, 3.0, 1e9] {
            let scores: Vec<f64> = (0..n).map(|_| (number() * levels).floor() / levels).collect();
            assert_eq!(auroc(&scores, &scores).unwrap(), 0.5, "{n} scores of {levels} levels");
            let reversed: Vec<f64> = scores.iter().rev().copied().collect();
            assert_eq!(auroc(&scores, &reversed).unwrap(), 0.5, "in another order");
        }
    }
    // The same images, most of them saturated.
    let mut number = numbers(3);
    let logits: Vec<f32> = (0..5_000).map(|_| (number() * 100.0) as f32).collect();
    let scores = max_softmax(&logits, 5).unwrap();
    assert!(scores.iter().filter(|&&p| p == 1.0).count() > 50, "ties at 1");
    assert_eq!(auroc(&scores, &scores).unwrap(), 0.5);
}

#[test]
fn equal_logits_in_any_order_of_classes_tie() {
    let mut number = numbers(8);
    for _ in 0..200 {
        let row: Vec<f32> = (0..11).map(|_| (number() * 12.0) as f32).collect();
        let score = max_softmax(&row, 11).unwrap();
        for turn in 1..11 {
            let turned: Vec<f32> = row[turn..].iter().chain(&row[..turn]).copied().collect();
            assert_eq!(max_softmax(&turned, 11).unwrap(), score);
        }
    }
}

#[test]
fn bounds_and_signed_zeros() {
    assert_eq!(auroc(&[1.0], &[0.0]).unwrap(), 1.0);
    assert_eq!(auroc(&[0.0], &[1.0]).unwrap(), 0.0);
    assert_eq!(auroc(&[0.0, -0.0], &[-0.0, 0.0, 0.0]).unwrap(), 0.5);
    assert_eq!(auroc(&[0.0, -0.0, 1.0], &[-0.0]).unwrap(), 2.0 / 3.0);
    assert_eq!(auroc(&[f64::INFINITY], &[1.0, f64::INFINITY]).unwrap(), 0.75);
}

#[test]
fn empty_sets_and_nan_are_refused() {
    for (positive, negative, says) in [
        (&[][..], &[0.5][..], "no in-distribution scores"),
        (&[0.5], &[], "no out-of-distribution scores"),
        (&[], &[], "no in-distribution scores"),
        (&[0.5, f64::NAN], &[0.5], "in-distribution score 1 is NaN"),
        (&[0.5], &[f64::NAN], "out-of-distribution score 0 is NaN"),
    ] {
        let error = auroc(positive, negative).unwrap_err();
        assert!(error.to_string().starts_with(says), "{error}");
        assert_eq!(error.exit_code(), 1);
    }
}
