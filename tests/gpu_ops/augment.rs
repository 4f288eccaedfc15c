//! Batches made on the device against those that the loader makes on the host.

use super::held::{ELEMENTS, Held, normal, padded, stored};
use sparse_engine::backend::gpu::Driver;
use sparse_engine::backend::gpu::ops::augment::{Augment, augment};
use sparse_engine::backend::gpu::ops::operand::Element;
use sparse_engine::data::{self, Batch, ImageShape, Loader, PadMode, PixelOrder, Preprocess, Split};
use sparse_engine::rng::{Purpose, Stream};

on_every_device!(training, evaluation, many_channels, what_does_not_fit);

const SEED: u64 = 7;

/// A split on the host with the same bytes on the device. `cut`: images before the split in its data set.
struct Set<'a, D: Driver> {
    split: Split,
    images: Held<'a, D>,
    labels: Held<'a, D>,
    shape: ImageShape,
    order: PixelOrder,
    cut: usize,
}

impl<'a, D: Driver> Set<'a, D> {
    fn new(driver: &'a D, shape: ImageShape, count: usize, cut: usize, order: PixelOrder) -> Self {
        let numbers = normal("pixels", (cut + count) * shape.numel());
        let bytes: Vec<u8> = numbers.iter().map(|v| (v * 70.0 + 128.0).clamp(0.0, 255.0) as u8).collect();
        let labels: Vec<u32> = (0..(cut + count) as u32).map(|i| 3 * i + 1).collect();
        let whole = Split::from_memory(shape, order, bytes.clone(), labels.clone()).unwrap();
        let split = if cut > 0 { whole.split_last(count).unwrap().1 } else { whole };
        let images = Held::of(driver, &bytes[cut * shape.numel()..]);
        Set { split, images, labels: Held::of(driver, &labels[cut..]), shape, order, cut }
    }

    fn preprocess(&self) -> Preprocess {
        let each = |from: f64, by: f64| (0..self.shape.c).map(|c| from + by * c as f64).collect();
        Preprocess { mean: each(0.3, 0.07), std: each(0.2, 0.05) }
    }

    fn tables(&self, driver: &'a D) -> Held<'a, D> {
        let p = self.preprocess();
        let table =
            |(m, s): (&f64, &f64)| (0..256).map(|v| ((f64::from(v) / 255.0 - m) / s) as f32).collect::<Vec<_>>();
        Held::of(driver, &p.mean.iter().zip(&p.std).flat_map(table).collect::<Vec<f32>>())
    }
}

/// All batches of two epochs, the index and the stream changed in place between launches, as under a captured graph.
fn check<D: Driver>(driver: &D, set: &Set<D>, batch: usize, how: Option<data::Augment>, element: Element) {
    let ImageShape { c, h, w } = set.shape;
    let (cp, count) = (padded(c), set.split.len());
    let loader = Loader::new(set.split.clone(), batch, set.preprocess(), how, SEED, 0).unwrap();
    let tables = set.tables(driver);
    let mut index = Held::of(driver, &[0u64]);
    let (mut order, mut stream) = (Held::of(driver, &vec![0u32; count]), Held::of(driver, &[0u32; 4]));
    for epoch in [0, 3] {
        if how.is_some() {
            let named = |name: &str| Stream::new(SEED, Purpose::Data, &format!("epoch {epoch} {name}"));
            order.put(&named("order").permutation(count));
            stream.put(&named("augment").words());
        }
        for (at, want) in loader.epoch(epoch, 0).enumerate() {
            index.put(&[at as u64]);
            // All slots are launched for even batches, those there are for odd ones.
            let slots = if at % 2 == 0 { batch } else { want.n };
            let (x, labels) = (Held::room(driver, element, slots * h * w * cp), Held::poisoned(driver, 4 * slots));
            let mut args = Augment {
                images: set.images.at(),
                all_labels: set.labels.at(),
                batch: index.at(),
                tables: tables.at(),
                x: x.at(),
                labels: labels.at(),
                count: count as u64,
                base: set.cut as u64,
                n: slots as u32,
                batch_size: batch as u32,
                c: c as u32,
                cp: cp as u32,
                h: h as u32,
                w: w as u32,
                hwc: u32::from(set.order == PixelOrder::Hwc),
                ..Augment::default()
            };
            if let Some(how) = how {
                (args.order, args.stream, args.pad) = (order.at(), stream.at(), how.pad as u32);
                (args.reflect, args.flip) = (u32::from(how.pad_mode == PadMode::Reflect), u32::from(how.flip));
            }
            // SAFETY: buffers of exactly the sizes that are promised.
            unsafe { augment(driver, element, &args) }.unwrap();
            let what = format!("{:?} {element:?} {how:?} epoch {epoch} batch {at}", set.shape);
            compare(&what, &want, &x.f64s(element), &labels.get::<u32>(), set.shape, element);
        }
    }
}

/// The same numbers, rounded to the type; zero in padding channels; untouched beyond the last image.
fn compare(what: &str, want: &Batch, x: &[f64], labels: &[u32], shape: ImageShape, element: Element) {
    let (ImageShape { c, h, w }, cp) = (shape, padded(shape.c));
    let (there, beyond) = x.split_at(want.n * h * w * cp);
    let images = stored(element, &want.images.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
    for (i, got) in there.iter().enumerate() {
        let (ch, pixel, image) = (i % cp, i / cp % (h * w), i / cp / (h * w));
        let want = if ch < c { images[(image * c + ch) * h * w + pixel] } else { 0.0 };
        assert!(*got == want, "{what}: image {image}, channel {ch}, pixel {pixel}: got {got}, want {want}");
    }
    assert_eq!(labels[..want.n], want.labels, "{what}");
    assert!(beyond.iter().all(|v| v.is_nan()) && labels[want.n..].iter().all(|l| *l == u32::MAX), "{what}: beyond");
}

fn training<D: Driver>(driver: &D) {
    for order in [PixelOrder::Chw, PixelOrder::Hwc] {
        for (shape, pad) in [(ImageShape { c: 3, h: 6, w: 7 }, 2), (ImageShape { c: 1, h: 5, w: 5 }, 4)] {
            for cut in [0, 5] {
                let set = Set::new(driver, shape, 13, cut, order);
                for pad_mode in [PadMode::Reflect, PadMode::Zero] {
                    for (pad, flip) in [(pad, true), (pad, false), (0, true), (0, false)] {
                        check(driver, &set, 5, Some(data::Augment { pad, pad_mode, flip }), Element::F32);
                    }
                }
            }
        }
    }
}

fn evaluation<D: Driver>(driver: &D) {
    for order in [PixelOrder::Chw, PixelOrder::Hwc] {
        let set = Set::new(driver, ImageShape { c: 3, h: 6, w: 7 }, 11, 4, order);
        for element in ELEMENTS {
            check(driver, &set, 4, None, element);
        }
    }
    let set = Set::new(driver, ImageShape { c: 1, h: 40, w: 33 }, 3, 0, PixelOrder::Chw); // two blocks an image
    check(driver, &set, 1, None, Element::F32);
    check(driver, &set, 2, Some(data::Augment { pad: 4, pad_mode: PadMode::Reflect, flip: true }), Element::F16);
}

/// More channels than a group has.
fn many_channels<D: Driver>(driver: &D) {
    for order in [PixelOrder::Chw, PixelOrder::Hwc] {
        let set = Set::new(driver, ImageShape { c: 17, h: 4, w: 5 }, 5, 0, order);
        for element in ELEMENTS {
            let how = data::Augment { pad: 2, pad_mode: PadMode::Zero, flip: true };
            check(driver, &set, 3, Some(how), element);
        }
    }
}

fn what_does_not_fit<D: Driver>(driver: &D) {
    let good = Augment { c: 3, cp: 8, h: 6, w: 7, pad: 5, ..Augment::default() };
    // SAFETY: no images, or refused: nothing is launched.
    let launch = |args| unsafe { augment(driver, Element::F32, &args) };
    launch(good).unwrap();
    for bad in [
        Augment { c: 0, cp: 0, ..good },
        Augment { cp: 16, ..good },
        Augment { pad: 6, ..good },
        Augment { h: 0, pad: 0, ..good },
        Augment { h: 1 << 20, w: 1 << 20, ..good },
    ] {
        assert!(!launch(bad).unwrap_err().to_string().contains('\n'), "{bad:?}");
    }
}
