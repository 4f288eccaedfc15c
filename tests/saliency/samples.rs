//! Which images are scored on.

use sparse_engine::data::epoch_order;
use sparse_engine::saliency::{Halves, grasp_samples, snip_samples};

/// Class i % 5 for most, class 3 rarer.
fn labels() -> Vec<u32> {
    (0..500).map(|i| if i % 5 == 3 && i > 100 { 0 } else { i % 5 }).collect()
}

#[test]
fn snip_takes_different_images_in_a_random_order() {
    let taken = snip_samples(500, 128, 7).unwrap();
    assert_eq!(taken.len(), 128);
    let mut sorted = taken.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!((sorted.len(), sorted.last().unwrap() < &500), (128, true));
    assert_ne!(sorted, taken);
    assert_eq!(snip_samples(500, 128, 7).unwrap(), taken);
    assert_eq!(snip_samples(500, 20, 7).unwrap(), taken[..20], "fewer samples are the first of them");
    assert_ne!(snip_samples(500, 128, 8).unwrap(), taken);
    for epoch in 0..3 {
        assert_ne!(epoch_order(7, epoch, 500)[..128], taken.iter().map(|&i| i as u32).collect::<Vec<_>>());
    }
    assert_eq!(snip_samples(3, 3, 1).unwrap().len(), 3);
    for samples in [0, 4] {
        let said = snip_samples(3, samples, 1).unwrap_err().to_string();
        assert!(said.contains("1 to 3") && said.contains(&samples.to_string()), "{said}");
    }
}

#[test]
fn grasp_takes_as_many_of_each_class_in_order_of_class() {
    let labels = labels();
    let of = |taken: &[usize]| taken.iter().map(|&i| labels[i]).collect::<Vec<_>>();
    let [lower, upper] = grasp_samples(&labels, 5, 6, Halves::ByClass, 1).unwrap();
    assert_eq!(of(&lower), [[0; 6], [1; 6]].concat());
    assert_eq!(of(&upper), [[2; 6], [3; 6], [4; 6]].concat());
    let all = [&lower[..], &upper].concat();
    let mut different = all.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), 30);
    assert_ne!(different, all);

    let [even, odd] = grasp_samples(&labels, 5, 5, Halves::Alternating, 1).unwrap();
    assert_eq!((even.len(), odd.len()), (13, 12));
    let joined: Vec<usize> = (0..25).map(|i| if i % 2 == 0 { even[i / 2] } else { odd[i / 2] }).collect();
    assert_eq!(joined, grasp_samples(&labels, 5, 5, Halves::ByClass, 1).unwrap().concat(), "the same images");
    assert_eq!(of(&even)[..6], [0, 0, 0, 1, 1, 2]);

    assert_eq!(grasp_samples(&labels, 5, 6, Halves::default(), 1).unwrap(), [lower.clone(), upper]);
    assert_ne!(grasp_samples(&labels, 5, 6, Halves::ByClass, 2).unwrap()[0], lower);
    // All 20 of the rare class, and no more.
    assert_eq!(grasp_samples(&labels, 5, 20, Halves::ByClass, 1).unwrap()[1].len(), 60);
    for (classes, per_class, words) in [
        (5, 21, ["wanted 21", "class 3 has 20"]),
        (6, 6, ["class 5 has 0", "fewer"]),
        (4, 6, ["label 4", "0 to 3"]),
        (5, 0, ["at least 1", "got 0 of 5"]),
        (1, 3, ["2 classes", "got 3 of 1"]),
    ] {
        let e = grasp_samples(&labels, classes, per_class, Halves::ByClass, 1).unwrap_err();
        let said = e.to_string();
        assert_eq!(e.exit_code(), 2);
        assert!(words.iter().all(|w| said.contains(w)) && !said.contains('\n'), "{said}");
    }
}
