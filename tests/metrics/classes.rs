//! Top-k, NLL, calibration.

use super::{close, fixture, logits};
use sparse_engine::metrics::{Classification, Logits, MOST_BINS, calibration, max_softmax, nll, top_k};

#[derive(serde::Deserialize)]
pub struct Case {
    name: String,
    classes: usize,
    logits: Vec<f32>,
    labels: Vec<u32>,
    top: Vec<(usize, f64)>,
    nll: f64,
    confidence: Vec<f64>,
    ece: Vec<Ece>,
}

#[derive(serde::Deserialize)]
struct Ece {
    bins: usize,
    value: f64,
    /// Count, sum of confidences, right answers.
    rows: Vec<(u64, f64, u64)>,
}

#[test]
fn equal_to_torch_and_numpy() {
    let cases = fixture().classification;
    assert_eq!(cases.len(), 9);
    for case in cases {
        let (name, n) = (&case.name, case.labels.len());
        // In batches, the last one ragged.
        let mut all = Logits::new(case.classes);
        for (at, labels) in case.labels.chunks(32).enumerate().map(|(i, labels)| (32 * i, labels)) {
            let indices: Vec<u32> = (at as u32..(at + labels.len()) as u32).collect();
            let rows = at * case.classes..(at + labels.len()) * case.classes;
            all.push(&case.logits[rows], labels, &indices).unwrap();
        }
        assert_eq!((all.len(), all.data(), all.labels()), (n, &case.logits[..], &case.labels[..]));
        assert_eq!(all, logits(case.classes, &case.logits, &case.labels));
        for (k, want) in case.top {
            assert_eq!(top_k(&all, k).unwrap(), want, "{name}: top-{k}");
        }
        assert_eq!(top_k(&all, case.classes).unwrap(), 1.0, "{name}");
        let got = nll(&all).unwrap();
        close(got, case.nll, 1e-13 * (1.0 + case.nll), name);
        let confidence = max_softmax(all.data(), case.classes).unwrap();
        assert_eq!(confidence.len(), case.confidence.len());
        for (i, (&got, &want)) in confidence.iter().zip(&case.confidence).enumerate() {
            close(got, want, 1e-14, &format!("{name}: confidence {i}"));
        }
        for want in case.ece {
            let got = calibration(&all, want.bins).unwrap();
            close(got.value, want.value, 1e-13, &format!("{name}: {} bins", want.bins));
            assert_eq!((got.bins, got.reliability.len(), want.rows.len()), (want.bins, want.bins, want.bins));
            for (i, (bin, (count, sum, right))) in got.reliability.iter().zip(want.rows).enumerate() {
                let what = format!("{name}: bin {i} of {}", want.bins);
                assert_eq!(bin.count, count, "{what}");
                assert_eq!((bin.lo, bin.hi), (i as f64 / want.bins as f64, (i + 1) as f64 / want.bins as f64));
                assert_eq!(bin.accuracy, (count > 0).then(|| right as f64 / count as f64), "{what}");
                match bin.confidence {
                    Some(mean) => close(mean, sum / count as f64, 1e-13, &what),
                    None => assert_eq!(count, 0, "{what}"),
                }
            }
        }
        let scores = Classification::of(&all, 10).unwrap();
        assert_eq!((scores.n, scores.accuracy, scores.nll), (n as u64, top_k(&all, 1).unwrap(), got));
        assert_eq!((scores.top5, scores.ece), (top_k(&all, 5).unwrap(), calibration(&all, 10).unwrap()));
    }
}

#[test]
fn an_edge_belongs_to_the_bin_below() {
    // k equal logits of 60: a confidence of exactly 1/k, which is an edge of every number of bins that k divides.
    for k in [1usize, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60] {
        let row: Vec<f32> = (0..60).map(|class| if class < k { 0.0 } else { -1e5 }).collect();
        let one = logits(60, &row, &[0]);
        for bins in [k, 2 * k, 7 * k, 15 * k] {
            let got = calibration(&one, bins).unwrap();
            let at = got.reliability.iter().position(|bin| bin.count == 1).unwrap();
            assert_eq!(at, bins / k - 1, "1/{k} in {bins} bins");
            assert_eq!(got.reliability[at].hi, 1.0 / k as f64);
            assert_eq!(got.value, 1.0 - 1.0 / k as f64, "right, with a confidence of 1/{k}");
        }
    }
}

#[test]
fn margins_of_200_are_exact() {
    // Right: ln(1 + 3 e^-200), of which f64 holds all digits although 1 + e^-200 is 1. Wrong: 200 + the same.
    let tiny = 3.0 * (-200f64).exp();
    let right = logits(4, &[0.0, 200.0, 0.0, 0.0], &[1]);
    assert_eq!(nll(&right).unwrap(), tiny);
    let shifted = logits(4, &[-200.0, -200.0, -200.0, 0.0], &[3]);
    assert_eq!(nll(&shifted).unwrap(), tiny);
    assert_eq!(nll(&logits(4, &[0.0, 200.0, 0.0, 0.0], &[0])).unwrap(), 200.0);
    let c = calibration(&right, 15).unwrap();
    assert_eq!((c.value, c.reliability[14].count, c.reliability[14].confidence), (0.0, 1, Some(1.0)));
    // As far as f32 goes.
    let far = logits(2, &[f32::MAX, -f32::MAX], &[1]);
    assert_eq!(nll(&far).unwrap(), 2.0 * f64::from(f32::MAX));
}

#[test]
fn ties_go_to_the_lowest_class() {
    let row = [1.0, 3.0, 3.0, 0.0, 3.0];
    for (label, first) in [(1, 1), (2, 2), (4, 3), (0, 4), (3, 5)] {
        for k in 1..=6 {
            let got = top_k(&logits(5, &row, &[label]), k).unwrap();
            assert_eq!(got, f64::from(u8::from(k >= first)), "label {label}, top-{k}");
        }
    }
    assert_eq!(top_k(&logits(2, &[-0.0, 0.0], &[0]), 1).unwrap(), 1.0, "-0 and 0 are equal");
    assert_eq!(calibration(&logits(2, &[0.0, -0.0], &[0]), 1).unwrap().value, 0.5);
}

#[test]
fn a_network_that_diverged_is_an_error_and_never_right() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in 0..3 {
            let mut data = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0];
            data[3 + at] = bad;
            let all = logits(3, &data, &[1, 1]);
            for error in [nll(&all).unwrap_err(), calibration(&all, 15).unwrap_err()] {
                let text = error.to_string();
                assert!(text.starts_with(&format!("image 1: the logit of class {at} is {bad}, wanted")), "{text}");
                assert!(text.contains("diverged") && !text.contains('\n'), "{text}");
                assert_eq!(error.exit_code(), 1);
            }
            assert!(max_softmax(&data, 3).is_err() && Classification::of(&all, 15).is_err());
            if bad.is_nan() {
                assert_eq!([1, 2, 3, 9].map(|k| top_k(&all, k).unwrap()), [0.5; 4], "NaN at {at}");
            }
        }
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let none = Logits::new(10);
    assert!(none.is_empty());
    for error in [nll(&none).unwrap_err(), calibration(&none, 15).unwrap_err(), top_k(&none, 1).unwrap_err()] {
        assert!(error.to_string().contains("no images"), "{error}");
    }
    let one = logits(2, &[0.0, 1.0], &[1]);
    for bins in [0, MOST_BINS + 1, usize::MAX] {
        let error = calibration(&one, bins).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(&format!("{bins} confidence bins")), "{error}");
    }
    assert!(calibration(&one, MOST_BINS).is_ok());
    assert_eq!(top_k(&one, 0).unwrap_err().exit_code(), 2);
    assert!(max_softmax(&[1.0; 5], 2).is_err() && max_softmax(&[], 0).is_err());
    assert!(max_softmax(&[], 3).unwrap().is_empty());

    let mut all = one.clone();
    for (data, labels, indices, says) in [
        (&[0.0; 3][..], &[0u32][..], &[0u32][..], "3 logits"),
        (&[0.0; 2], &[0, 1], &[0, 1], "2 logits"),
        (&[0.0; 2], &[0], &[], "0 indices"),
        (&[0.0; 2], &[2], &[77], "image 77 has label 2, the network has 2 classes"),
        (&[0.0; 2], &[u32::MAX], &[0], "label 4294967295"),
    ] {
        let error = all.push(data, labels, indices).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(all, one, "nothing was appended");
    }
    assert!(Logits::new(0).push(&[], &[0], &[0]).is_err());
}
