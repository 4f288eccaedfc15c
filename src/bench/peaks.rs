//! What this machine can do at most with so many threads: arithmetic, arithmetic fed from each cache, and memory. A kernel's
//! figure means something beside these only, and they are measured where it runs: clock speeds and neighbours vary.

use crate::backend::cpu::{Isa, probe};
use serde::Serialize;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Each limit is looked at this often, and the best taken: noise only ever slows.
const ROUNDS: usize = 3;
/// How long a look takes.
const WINDOW: Duration = Duration::from_millis(30);
/// Bytes of a cache line.
const LINE: usize = 64;

/// Limits of the machine, all threads together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Peaks {
    /// Threads that ran at once.
    pub threads: usize,
    /// Instruction set.
    pub isa: &'static str,
    /// Fused multiply-adds in registers: 10^9 FLOP a second, 2 a multiply-add.
    pub fma_gflops: f64,
    /// Multiply-adds that each load a vector, by where the data lies.
    pub load_fma: Vec<Fed>,
    /// Reading from memory, 10^9 bytes a second.
    pub read_gb_s: f64,
    /// Copying in memory with plain stores, 10^9 bytes a second, read and written counted, the read that a plain store
    /// makes of its line not.
    pub copy_gb_s: f64,
}

/// Arithmetic with one vector load a multiply-add.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fed {
    /// "L1", "L2" or "L3".
    pub from: &'static str,
    /// Bytes that each thread walks over.
    pub bytes: usize,
    /// 10^9 FLOP a second.
    pub gflops: f64,
}

/// Measures for about a second, with the best instruction set of this machine, on so many threads, but on one a core at most.
pub fn measure(threads: usize) -> Peaks {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let (threads, isa) = (threads.clamp(1, cores), Isa::detect());
    let caches = Caches::this();
    let fed = caches.fed(threads);
    let memory = caches.memory(threads);
    let barrier = Barrier::new(threads);
    let looks = std::thread::scope(|scope| {
        let worker = || look(isa, &barrier, &fed, memory);
        let spawned: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        let mut all = vec![worker()];
        // A worker panics only if memory is out, which aborts.
        all.extend(spawned.into_iter().filter_map(|s| s.join().ok()));
        all
    });
    // Rates of the threads add up within a round; the best round counts.
    let best = |test: usize| {
        (0..ROUNDS).map(|round| looks.iter().map(|l| l[test][round]).sum::<f64>()).fold(0.0, f64::max) / 1e9
    };
    let fed: Vec<Fed> =
        fed.iter().enumerate().map(|(i, &(from, bytes))| Fed { from, bytes, gflops: best(1 + i) }).collect();
    let after = 1 + fed.len();
    // One load of 4 bytes a multiply-add of 2 FLOP.
    Peaks {
        threads,
        isa: isa.name(),
        fma_gflops: best(0),
        load_fma: fed,
        read_gb_s: 2.0 * best(after),
        copy_gb_s: best(after + 1),
    }
}

/// One thread's rates, a test and a round. Its buffers are its own, so that they lie in its memory.
fn look(isa: Isa, barrier: &Barrier, fed: &[(&'static str, usize)], memory: usize) -> Vec<[f64; ROUNDS]> {
    let mut store = vec![0.25f32; memory / 4 + LINE / 4];
    let skip = store.as_ptr().align_offset(LINE).min(LINE / 4); // else every other load crosses a line
    let store = &mut store[skip..][..memory / 4];
    let mut rates = vec![rate(barrier, || probe::fma_registers(isa))];
    for &(_, bytes) in fed {
        let data = &store[..bytes / 4];
        // A look at the clock a megabyte.
        rates.push(rate(barrier, || probe::fma_loads(isa, data, (1 << 20) / bytes.min(1 << 20))));
    }
    rates.push(rate(barrier, || probe::fma_loads(isa, store, 1)));
    let (from, to) = store.split_at_mut(memory / 8);
    rates.push(rate(barrier, || probe::copy(isa, from, to)));
    rates
}

/// Units a second in each round; `work` returns units done.
fn rate(barrier: &Barrier, mut work: impl FnMut() -> u64) -> [f64; ROUNDS] {
    work(); // caches, page tables, clock
    std::array::from_fn(|_| {
        barrier.wait();
        let (start, mut units) = (Instant::now(), 0);
        loop {
            units += work();
            let passed = start.elapsed();
            if passed >= WINDOW {
                return units as f64 / passed.as_secs_f64();
            }
        }
    })
}

/// Bytes of the caches; 0 where there is none or the system does not tell.
struct Caches {
    l1: usize,
    l2: usize,
    l3: usize,
}

impl Caches {
    /// As Linux tells for the first core; else small ones that most machines have.
    fn this() -> Self {
        let mut c = Caches { l1: 0, l2: 0, l3: 0 };
        for index in 0..8 {
            let read = |name: &str| {
                let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}");
                std::fs::read_to_string(path).unwrap_or_default().trim().to_string()
            };
            if let ("Data" | "Unified", Some(bytes)) = (read("type").as_str(), size(&read("size"))) {
                match read("level").as_str() {
                    "1" => c.l1 = bytes,
                    "2" => c.l2 = bytes,
                    "3" => c.l3 = bytes,
                    _ => {}
                }
            }
        }
        if c.l1 == 0 { Caches { l1: 32 << 10, l2: 256 << 10, l3: 0 } } else { c }
    }

    /// What each of `threads` walks over to be fed from a cache: half of its share, and more than the cache before holds.
    fn fed(&self, threads: usize) -> Vec<(&'static str, usize)> {
        let mut fed = vec![("L1", self.l1 / 2)];
        let mut before = self.l1;
        for (name, share, all) in [("L2", self.l2 / 2, self.l2), ("L3", (self.l3 / 2 / threads).min(8 << 20), self.l3)]
        {
            if share >= 2 * before {
                fed.push((name, share));
            }
            before = before.max(all);
        }
        fed
    }

    /// What each of `threads` walks over to be fed from memory: all together four times the last cache, within what a small
    /// machine has.
    fn memory(&self, threads: usize) -> usize {
        let all = (4 * self.l3.max(self.l2)).clamp(64 << 20, 512 << 20);
        (all / threads).max(8 << 20)
    }
}

/// "32K" or "1M" in bytes.
fn size(text: &str) -> Option<usize> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(["32K", "1M", "512", "2G"].map(size), [Some(32 << 10), Some(1 << 20), Some(512), Some(2 << 30)]);
        assert_eq!(["", "K", "3X", "99999999999999999999K"].map(size), [None; 4]);
    }

    #[test]
    fn buffers_fit_their_cache_and_miss_the_one_before() {
        let zen = Caches { l1: 32 << 10, l2: 512 << 10, l3: 32 << 20 };
        assert_eq!(zen.fed(2), [("L1", 16 << 10), ("L2", 256 << 10), ("L3", 8 << 20)]);
        assert_eq!(zen.fed(16), [("L1", 16 << 10), ("L2", 256 << 10), ("L3", 1 << 20)]);
        assert_eq!(zen.fed(64), [("L1", 16 << 10), ("L2", 256 << 10)], "a thread's share of L3 is no more than its L2");
        let small = Caches { l1: 32 << 10, l2: 0, l3: 0 };
        assert_eq!(small.fed(1), [("L1", 16 << 10)]);
        assert_eq!((zen.memory(2), zen.memory(64), small.memory(1)), (64 << 20, 8 << 20, 64 << 20));
    }

    #[test]
    fn a_measurement_is_complete() {
        let cores = std::thread::available_parallelism().unwrap().get();
        let p = measure(usize::MAX);
        assert_eq!((p.threads, p.isa), (cores, Isa::detect().name()));
        let fed: Vec<f64> = p.load_fma.iter().map(|f| f.gflops).collect();
        let all = [&fed[..], &[p.fma_gflops, p.read_gb_s, p.copy_gb_s]].concat();
        assert!(fed.iter().len() >= 1 && all.iter().all(|v| *v > 0.01 && *v < 1e6), "{p:?}");
    }
}
