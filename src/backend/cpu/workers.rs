//! Threads: numbered tasks, taken in order by whichever thread is free. Results never depend on who ran a task, because
//! tasks write disjoint outputs and every reduction has a fixed order.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Whether `work` (vector operations) is worth waking another thread, which costs some microseconds. Tests, which have debug
/// assertions, use threads however small they are.
fn worth_waking(work: usize) -> bool {
    cfg!(debug_assertions) || work >= 4096
}

/// The calling thread and `threads - 1` helpers.
pub(super) struct Workers {
    pool: Option<rayon::ThreadPool>,
    threads: usize,
}

impl Workers {
    /// `threads` 0: as many as the machine (or its container) offers.
    pub(super) fn new(threads: usize) -> Result<Self> {
        let threads = if threads == 0 { std::thread::available_parallelism().map_or(1, |n| n.get()) } else { threads };
        let pool = if threads == 1 {
            None
        } else {
            let build = rayon::ThreadPoolBuilder::new().num_threads(threads - 1).thread_name(|i| format!("cpu-{i}"));
            let failed = |e| Error::Failed(format!("cpu backend: cannot start {threads} threads: {e}; use fewer"));
            Some(build.build().map_err(failed)?)
        };
        Ok(Workers { pool, threads })
    }

    /// Threads, the caller included.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `f(worker, task)` for every task in `0..tasks`; `worker` is below [`Workers::threads`] and no two tasks run
    /// at once under one worker number. `work` is the whole job in vector operations. The only allocation is rayon's
    /// small box a helper.
    pub(super) fn run(&self, tasks: usize, work: usize, f: impl Fn(usize, usize) + Sync) {
        let next = AtomicUsize::new(0);
        let drain = |worker: usize| {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                f(worker, task);
            }
        };
        match &self.pool {
            Some(pool) if tasks > 1 && worth_waking(work) => pool.in_place_scope(|scope| {
                let drain = &drain;
                for worker in 1..self.threads.min(tasks) {
                    scope.spawn(move |_| drain(worker));
                }
                drain(0);
            }),
            _ => drain(0),
        }
    }
}

/// A pointer that tasks share. SAFETY: whoever uses it makes sure that tasks running at once write disjoint parts.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(*mut T);

unsafe impl<T: Send> Send for Shared<T> {}
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(slice: &mut [T]) -> Self {
        Shared(slice.as_mut_ptr())
    }

    /// A pointer that outlives every use.
    pub(super) fn from_ptr(p: *mut T) -> Self {
        Shared(p)
    }

    /// Element `i`.
    pub(super) unsafe fn at(&self, i: usize) -> *mut T {
        unsafe { self.0.add(i) }
    }

    /// Elements `at..at + len`, which no other task may touch meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, at: usize, len: usize) -> &mut [T] {
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_and_worker_numbers_are_exclusive() {
        for threads in [1, 2, 5] {
            let workers = Workers::new(threads).unwrap();
            for tasks in [0, 1, 3, 1000] {
                let ran: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                let busy: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
                workers.run(tasks, usize::MAX, |worker, task| {
                    assert_eq!(busy[worker].fetch_add(1, Ordering::SeqCst), 0);
                    ran[task].fetch_add(1, Ordering::SeqCst);
                    busy[worker].fetch_sub(1, Ordering::SeqCst);
                });
                assert!(ran.iter().all(|r| r.load(Ordering::SeqCst) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }
}
