//! Batches made ahead of time on worker threads, the same for any number of them.

use super::augment::Normalise;
use super::{Augment, Preprocess, Split};
use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// Batches kept ready beyond those that the workers hold.
pub(super) const AHEAD: usize = 4;

/// One batch on the host, normalised, N,C,H,W.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Images in it; the last batch of an epoch may be ragged.
    pub n: usize,
    /// `n*C*H*W` numbers.
    pub images: Vec<f32>,
    /// `n` labels; none where the images have none (noise).
    pub labels: Vec<u32>,
}

/// Makes batches on worker threads, the same for any thread count.
///
/// The order of an epoch is a permutation drawn from the stream (seed, Data, "epoch E order"); the crop and flip of an
/// image come from (seed, Data, "epoch E augment") at the image's position in the data set. So they depend on neither
/// threads nor batch size nor where a run was resumed.
pub struct Loader {
    split: Split,
    batch: usize,
    normalise: Arc<Normalise>,
    augment: Option<Augment>,
    seed: u64,
    threads: usize,
}

impl Loader {
    /// `batch`: images a batch, at least 1. `augment`: `None` for evaluation (file order, no crop or flip); else shuffled
    /// each epoch. `threads`: workers; 0 makes each batch on the calling thread when it is asked for.
    pub fn new(
        split: Split,
        batch: usize,
        preprocess: Preprocess,
        augment: Option<Augment>,
        seed: u64,
        threads: usize,
    ) -> Result<Self> {
        if batch == 0 {
            return Err(Error::Usage("batch_size = 0: wanted at least 1".into()));
        }
        if let Some(augment) = augment {
            augment.check(split.shape())?;
        }
        let normalise = Arc::new(Normalise::new(&preprocess, split.shape())?);
        Ok(Loader { split, batch, normalise, augment, seed, threads })
    }

    /// Batches an epoch, the ragged last one counted.
    pub fn batches(&self) -> usize {
        self.split.len().div_ceil(self.batch)
    }

    /// Batches `first_batch..` of epoch `epoch` in order, prefetched; a pure function of (split, seed, epoch, batch index).
    /// Dropping the iterator stops and joins the workers.
    pub fn epoch(&self, epoch: u64, first_batch: usize) -> impl Iterator<Item = Batch> + use<> {
        let (split, batch, normalise) = (self.split.clone(), self.batch, self.normalise.clone());
        let train =
            self.augment.map(|augment| (augment, epoch_order(self.seed, epoch, split.len()), crops(self.seed, epoch)));
        let make = move |index: usize| {
            let from = index * batch;
            let n = batch.min(split.len() - from);
            let size = split.shape().numel();
            let mut out = Batch { n, images: vec![0.0; n * size], labels: Vec::with_capacity(n) };
            let mut columns = Vec::new();
            for (k, image) in out.images.chunks_exact_mut(size).enumerate() {
                let (i, crop) = match &train {
                    None => (from + k, None),
                    Some((augment, order, stream)) => {
                        let i = order[from + k] as usize;
                        (i, Some(augment.draw(stream.block(split.position(i) as u64))))
                    }
                };
                normalise.apply(split.stored(i), crop, &mut columns, image);
                out.labels.push(split.label(i));
            }
            out
        };
        Prefetch::new(first_batch.min(self.batches()), self.batches(), self.threads, make)
    }
}

impl Loader {
    /// One batch of these images of the split, in this order: normalised, and augmented if the loader is, by crops and flips
    /// from the stream (seed, Data, `stream`) at each image's position. Epochs have streams of other names.
    ///
    /// # Panics
    /// An index beyond the split.
    pub fn gather(&self, indices: &[usize], stream: &str) -> Batch {
        let size = self.split.shape().numel();
        let crops = Stream::new(self.seed, Purpose::Data, stream);
        let mut out = Batch { n: indices.len(), images: vec![0.0; indices.len() * size], labels: Vec::new() };
        let mut columns = Vec::new();
        for (&i, image) in indices.iter().zip(out.images.chunks_exact_mut(size)) {
            let crop = self.augment.map(|a| a.draw(crops.block(self.split.position(i) as u64)));
            self.normalise.apply(self.split.stored(i), crop, &mut columns, image);
            out.labels.push(self.split.label(i));
        }
        out
    }
}

/// Order of `n` images in an epoch.
pub fn epoch_order(seed: u64, epoch: u64, n: usize) -> Vec<u32> {
    Stream::new(seed, Purpose::Data, &format!("epoch {epoch} order")).permutation(n)
}

/// The stream that an epoch's crops and flips are drawn from, a block an image, as [`Stream::words`].
pub fn epoch_crops(seed: u64, epoch: u64) -> [u32; 4] {
    crops(seed, epoch).words()
}

fn crops(seed: u64, epoch: u64) -> Stream {
    Stream::new(seed, Purpose::Data, &format!("epoch {epoch} augment"))
}

/// Results of `make(from..to)` in order, made by workers at most `AHEAD` beyond the number of workers ahead.
pub(super) struct Prefetch<T, F> {
    shared: Arc<Shared<T, F>>,
    workers: Vec<JoinHandle<()>>,
    /// Next to hand out.
    next: usize,
    to: usize,
}

struct Shared<T, F> {
    make: F,
    to: usize,
    ahead: usize,
    state: Mutex<State<T>>,
    /// Something was handed out, or it is time to stop.
    room: Condvar,
    /// Something was made, or a worker panicked.
    made: Condvar,
}

struct State<T> {
    /// Next that no worker has begun.
    begun: usize,
    handed_out: usize,
    ready: BTreeMap<usize, T>,
    stop: bool,
    panic: Option<Box<dyn Any + Send>>,
}

impl<T: Send + 'static, F: Fn(usize) -> T + Send + Sync + 'static> Prefetch<T, F> {
    pub(super) fn new(from: usize, to: usize, threads: usize, make: F) -> Self {
        let threads = threads.min(to - from);
        let state = State { begun: from, handed_out: from, ready: BTreeMap::new(), stop: false, panic: None };
        let shared = Arc::new(Shared {
            make,
            to,
            ahead: threads + AHEAD,
            state: Mutex::new(state),
            room: Condvar::new(),
            made: Condvar::new(),
        });
        // A worker that the system refuses to start is done without; without any, `next` makes the batches itself.
        let spawn = |i: usize| {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("data-{i}")).spawn(move || shared.work()).ok()
        };
        Prefetch { workers: (0..threads).filter_map(spawn).collect(), shared, next: from, to }
    }
}

impl<T, F: Fn(usize) -> T> Shared<T, F> {
    /// Nothing panics while the lock is held.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if state.stop || state.begun == self.to {
                return;
            }
            if state.begun >= state.handed_out + self.ahead {
                state = self.room.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
                continue;
            }
            let index = state.begun;
            state.begun += 1;
            drop(state);
            let result = catch_unwind(AssertUnwindSafe(|| (self.make)(index)));
            state = self.lock();
            match result {
                Ok(item) => {
                    state.ready.insert(index, item);
                }
                Err(panic) => {
                    state.panic = Some(panic);
                    state.stop = true;
                    self.room.notify_all();
                }
            }
            self.made.notify_all();
        }
    }
}

impl<T, F: Fn(usize) -> T> Iterator for Prefetch<T, F> {
    type Item = T;

    /// A worker's panic goes on here.
    fn next(&mut self) -> Option<T> {
        if self.next == self.to {
            return None;
        }
        let index = self.next;
        self.next += 1;
        if self.workers.is_empty() {
            return Some((self.shared.make)(index));
        }
        let mut state = self.shared.lock();
        loop {
            if let Some(item) = state.ready.remove(&index) {
                state.handed_out = self.next;
                self.shared.room.notify_all();
                return Some(item);
            }
            if let Some(panic) = state.panic.take() {
                self.next = self.to;
                drop(state);
                resume_unwind(panic);
            }
            state = self.shared.made.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.to - self.next, Some(self.to - self.next))
    }
}

impl<T, F> Drop for Prefetch<T, F> {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).stop = true;
        self.shared.room.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // its panics were caught
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn order_is_kept_by_slow_and_fast_workers() {
        for threads in [0, 1, 2, 7] {
            let make = |i: usize| {
                std::thread::sleep(Duration::from_micros((i as u64 * 7919) % 300));
                i
            };
            assert!(Prefetch::new(3, 60, threads, make).eq(3..60), "{threads} threads");
            assert_eq!(Prefetch::new(5, 5, threads, make).next(), None);
        }
    }

    #[test]
    fn workers_stay_within_the_bound_and_end_when_dropped() {
        let made = Arc::new(AtomicUsize::new(0));
        let count = made.clone();
        let mut run = Prefetch::new(0, 1_000_000, 2, move |i| {
            count.fetch_add(1, Ordering::SeqCst);
            i
        });
        assert_eq!(run.next(), Some(0));
        std::thread::sleep(Duration::from_millis(50));
        assert!(made.load(Ordering::SeqCst) <= 1 + 2 + AHEAD, "{} made", made.load(Ordering::SeqCst));
        let shared = Arc::downgrade(&run.shared);
        drop(run);
        assert!(shared.upgrade().is_none(), "a worker outlives the iterator");
    }

    #[test]
    fn a_panic_reaches_the_consumer_and_nobody_hangs() {
        for threads in [1, 3] {
            let mut run = Prefetch::new(0, 100, threads, |i| {
                if i == 10 {
                    resume_unwind(Box::new("boom")); // a panic without the message on stderr
                }
                i
            });
            let result = catch_unwind(AssertUnwindSafe(|| run.by_ref().count()));
            assert_eq!(result.unwrap_err().downcast_ref(), Some(&"boom"));
            assert_eq!(run.next(), None);
        }
    }
}
