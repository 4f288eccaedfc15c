//! Threads. The numbered tasks of a job are shared out in order: each thread has a range of its own and takes from the
//! others' ends when it is through. Results never depend on who ran a task, because tasks write disjoint outputs and every
//! reduction has a fixed order.
//!
//! Jobs number their tasks alike, images before rows before channels, so that a thread mostly reads what it wrote itself:
//! what another core wrote comes at a quarter of the speed where the two share no cache (Zen 3, 2026-11: 12 GB/s instead
//! of 45).
//!
//! A step is some hundred short jobs, and waking a sleeping thread takes as long as a short one. So helpers, threads of a
//! rayon pool, stay awake for a while after a job, and nobody waits for a helper that has not come. Against one queue and
//! sleeping helpers, a step of ResNet-20 at 95 % takes 0.82 of the time, at 80 % 0.91 (Zen 3, two threads, 2026-11).

use super::kernels::patch::part;
use crate::error::{Error, Result};
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Whether `work` (vector operations) is worth another thread's attention, which costs some microseconds. Tests, which have
/// debug assertions, use threads however small they are.
fn worth_waking(work: usize) -> bool {
    cfg!(debug_assertions) || work >= 4096
}

/// How long a helper stays awake: longer than what lies between the jobs of a step.
const LINGER: Duration = Duration::from_micros(200);
/// Looks at a variable before the processor is offered to others.
const SPINS: usize = 256;

/// The calling thread and `threads - 1` helpers.
pub(super) struct Workers {
    pool: Option<rayon::ThreadPool>,
    board: Arc<Board>,
}

/// Where helpers find a job. It is open from its posting until its poster has seen the last task taken.
struct Board {
    /// Number of the open job; 0: none.
    open: AtomicUsize,
    /// Number of the last job posted.
    last: AtomicUsize,
    /// The open job: a `&Job`.
    job: AtomicPtr<()>,
    /// Whether a job is open or being closed.
    busy: AtomicBool,
    /// Helpers that may be inside the open job.
    inside: AtomicUsize,
    /// Helpers that are awake.
    awake: Vec<AtomicBool>,
    /// What a helper's task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Takes tasks as a worker until there are none.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

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
        Ok(Workers { pool, board: Arc::new(Board::new(threads - 1)) })
    }

    /// Threads, the caller included.
    pub(super) fn threads(&self) -> usize {
        self.board.awake.len() + 1
    }

    /// Runs `f(worker, task)` for every task in `0..tasks`; `worker` is below [`Workers::threads`] and no two tasks run
    /// at once under one worker number. `work` is the whole job in vector operations.
    ///
    /// Not to be called from a task, nor by two threads at once (not always detected).
    ///
    /// # Panics
    /// As one of the tasks that panicked, when no task runs any more; others may not have run. At 2^32 tasks.
    pub(super) fn run(&self, tasks: usize, work: usize, f: impl Fn(usize, usize) + Sync) {
        match &self.pool {
            Some(pool) if tasks > 1 && worth_waking(work) => {
                let workers = self.threads().min(tasks);
                let shares: Vec<Share> = (0..workers).map(|i| Share::new(part(tasks, workers, i))).collect();
                let work = |worker: usize| {
                    if worker >= workers {
                        return;
                    }
                    while let Some(task) = shares[worker].first() {
                        f(worker, task);
                    }
                    for other in (1..workers).map(|i| &shares[(worker + i) % workers]) {
                        while let Some(task) = other.last() {
                            f(worker, task);
                        }
                    }
                };
                let helpers = workers - 1;
                for (i, awake) in self.board.awake.iter().enumerate().take(helpers) {
                    if !awake.swap(true, Ordering::Relaxed) {
                        let board = self.board.clone();
                        pool.spawn(move || board.help(i));
                    }
                }
                let job: &Job = &work;
                let mut panic = None;
                let posted = Posted::new(&self.board, &job, &mut panic);
                work(0);
                drop(posted);
                if let Some(panic) = panic {
                    resume_unwind(panic);
                }
            }
            _ => (0..tasks).for_each(|task| f(0, task)),
        }
    }
}

impl Board {
    fn new(helpers: usize) -> Self {
        Board {
            open: AtomicUsize::new(0),
            last: AtomicUsize::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            busy: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            awake: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
        }
    }

    /// Helper `i`: takes part in jobs until there has been none for a while.
    fn help(&self, i: usize) {
        let (mut done, mut idle) = (0, Instant::now());
        loop {
            let open = self.open.load(Ordering::Acquire);
            if open != 0 && open != done {
                self.take_part(open, i + 1);
                (done, idle) = (open, Instant::now());
            }
            if spin_until(|| ![0, done].contains(&self.open.load(Ordering::Relaxed))) {
                continue;
            }
            if idle.elapsed() > LINGER {
                // A job posted just now is done without this helper; a later one wakes it.
                self.awake[i].store(false, Ordering::Relaxed);
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Runs job number `open` as `worker`, unless it has been closed.
    fn take_part(&self, open: usize, worker: usize) {
        // Either the poster sees this helper inside, or the helper sees the job closed: both orders are sequential.
        self.inside.fetch_add(1, Ordering::SeqCst);
        if self.open.load(Ordering::SeqCst) == open {
            // SAFETY: the poster keeps the job until nobody is inside.
            let job = unsafe { *self.job.load(Ordering::Relaxed).cast::<&Job>() };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(worker))) {
                self.panic.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(panic);
            }
        }
        self.inside.fetch_sub(1, Ordering::Release);
    }
}

/// An open job; closes it when dropped, also by a panic of the poster's own task, once no helper is inside.
struct Posted<'a> {
    board: &'a Board,
    /// Gets what a helper's task panicked with.
    panic: &'a mut Option<Box<dyn Any + Send>>,
}

impl<'a> Posted<'a> {
    fn new(board: &'a Board, job: &'a &'a Job<'a>, panic: &'a mut Option<Box<dyn Any + Send>>) -> Self {
        assert!(!board.busy.swap(true, Ordering::Acquire), "a job inside a job, or two at once");
        board.job.store(std::ptr::from_ref(job).cast_mut().cast(), Ordering::Relaxed);
        let number = board.last.fetch_add(1, Ordering::Relaxed) + 1;
        board.open.store(number, Ordering::SeqCst);
        Posted { board, panic }
    }
}

impl Drop for Posted<'_> {
    fn drop(&mut self) {
        let board = self.board;
        board.open.store(0, Ordering::SeqCst);
        while !spin_until(|| board.inside.load(Ordering::SeqCst) == 0) {
            std::thread::yield_now();
        }
        *self.panic = board.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        board.busy.store(false, Ordering::Release);
    }
}

/// Looks at a condition for some microseconds.
fn spin_until(condition: impl Fn() -> bool) -> bool {
    (0..SPINS).any(|_| {
        std::hint::spin_loop();
        condition()
    })
}

/// Tasks that are left of a thread's share: first and end, 32 bits each. Alone in its lines, so that taking a task costs no
/// other thread anything.
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    fn new(tasks: Range<usize>) -> Self {
        assert!(u32::try_from(tasks.end).is_ok(), "{} tasks; wanted fewer than 2^32", tasks.end);
        Share(AtomicU64::new((tasks.start as u64) << 32 | tasks.end as u64))
    }

    /// Takes the first task.
    fn first(&self) -> Option<usize> {
        self.take(|first, end| (first + 1, end)).map(|[first, _]| first)
    }

    /// Takes the last task.
    fn last(&self) -> Option<usize> {
        self.take(|first, end| (first, end - 1)).map(|[_, end]| end - 1)
    }

    /// What was left, unless it was nothing.
    fn take(&self, left: impl Fn(u64, u64) -> (u64, u64)) -> Option<[usize; 2]> {
        let split = |v: u64| (v >> 32, v & u64::from(u32::MAX));
        let less = |v: u64| {
            let (first, end) = split(v);
            let (first, end) = (first < end).then(|| left(first, end))?;
            Some(first << 32 | end)
        };
        let v = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok()?;
        let (first, end) = split(v);
        Some([first as usize, end as usize])
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
    fn a_task_that_panics_ends_the_job_and_no_other() {
        let workers = Workers::new(3).unwrap();
        for bad in 0..20 {
            let ran = AtomicUsize::new(0);
            let job = || {
                workers.run(20, usize::MAX, |_, task| {
                    std::thread::sleep(Duration::from_micros(50));
                    assert!(task != bad, "task {task}");
                    ran.fetch_add(1, Ordering::Relaxed);
                })
            };
            let panic = catch_unwind(AssertUnwindSafe(job)).expect_err("no panic");
            assert_eq!(panic.downcast_ref::<String>(), Some(&format!("task {bad}")));
            assert!(ran.load(Ordering::Relaxed) < 20);
            workers.run(20, usize::MAX, |_, _| {});
        }
    }

    #[test]
    fn helpers_that_went_to_sleep_come_back() {
        let workers = Workers::new(2).unwrap();
        for _ in 0..5 {
            let helped = AtomicBool::new(false);
            while !helped.load(Ordering::Relaxed) {
                workers.run(2, usize::MAX, |worker, _| {
                    helped.fetch_or(worker == 1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                });
            }
            let start = Instant::now();
            while workers.board.awake[0].load(Ordering::Relaxed) {
                assert!(start.elapsed() < Duration::from_secs(30), "awake without a job");
                std::thread::sleep(LINGER);
            }
        }
    }

    #[test]
    fn a_share_is_taken_from_both_ends() {
        let share = Share::new(5..9);
        let taken = [share.first(), share.last(), share.last(), share.first(), share.first(), share.last()];
        assert_eq!(taken, [Some(5), Some(8), Some(7), Some(6), None, None]);
        assert_eq!(Share::new(0..0).last(), None);
    }

    #[test]
    fn a_thread_that_is_through_takes_the_ends_of_others() {
        let workers = Workers::new(2).unwrap();
        let wanted: Vec<_> = [4, 5, 6, 7, 3, 2, 1].map(|task| (1, task)).into_iter().chain([(0, 0)]).collect();
        let ran = || {
            let (left, by, start) = (AtomicUsize::new(8), Mutex::new(vec![]), Instant::now());
            // Worker 0 is held by its first task until all others have run, or no helper has come.
            workers.run(8, usize::MAX, |worker, task| {
                while task == 0 && left.load(Ordering::Acquire) > 1 && start.elapsed() < Duration::from_secs(1) {
                    std::thread::yield_now();
                }
                by.lock().unwrap().push((worker, task));
                left.fetch_sub(1, Ordering::Release);
            });
            by.into_inner().unwrap()
        };
        let mut last = vec![];
        assert!(
            (0..20).any(|_| {
                last = ran();
                last == wanted
            }),
            "{last:?}"
        );
    }

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
                    std::thread::sleep(Duration::from_micros(1)); // so that helpers come
                    busy[worker].fetch_sub(1, Ordering::SeqCst);
                });
                assert!(ran.iter().all(|r| r.load(Ordering::SeqCst) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }
}
