//! Which blocks a layer keeps.
//!
//! The set is balanced by construction: counts over block rows differ by at most one, and so do counts over block
//! columns. Otherwise it is to be uniform over all such sets. A switch takes two kept blocks, lets them exchange their
//! block columns, gives each a random tap, and stays as it was where one of them would meet a kept block: it is its own
//! inverse with the same probability, so the chain of switches has the uniform distribution as its stationary one. In
//! the pairing of rows with columns a switch is a random transposition, and n pairs are well mixed after n ln(n) / 2 of
//! these; the chain here tries n (8 + 4 log2(n)), and with at most half of all blocks kept (else those pruned are
//! drawn) a quarter or more succeed. Then rows and columns are relabelled by random permutations and the taps of each
//! pair drawn anew, neither of which changes the uniform distribution: so every block is kept with probability exactly
//! kept / blocks, however far the chain has come.

use crate::rng::Stream;
use crate::shape::BlockShape;

/// Kept positions of a weight of `shape`, ascending, that consist of `kept` blocks, one or more in each block row and
/// column if `kept` is at least the number of both. `block` must divide `shape`, and `kept` be at most the number of
/// blocks.
pub(super) fn draw(stream: &Stream, shape: &[usize], block: BlockShape, kept: usize) -> Vec<u32> {
    let Some(grid @ [_, cols, taps]) = block.grid(shape) else { return Vec::new() };
    let chosen = choose(&mut Random { stream, next: 0 }, grid, kept);
    let (r, c) = (block.r as usize, block.c as usize);
    let mut positions = Vec::with_capacity(kept * block.weights());
    for k in 0..shape[0] {
        for channel in 0..shape[1] {
            let first = (k / r * cols + channel / c) * taps;
            let at = (k * shape[1] + channel) * taps;
            positions.extend((0..taps).filter(|tap| chosen[first + tap]).map(|tap| (at + tap) as u32));
        }
    }
    positions
}

/// Which blocks of `[block rows, block columns, taps]` are kept.
fn choose(random: &mut Random, grid: [usize; 3], kept: usize) -> Vec<bool> {
    let [rows, cols, taps] = grid;
    let all = rows * cols * taps;
    let drawn = kept.min(all - kept); // what is pruned is balanced where what is kept is
    let mut list: Vec<[usize; 3]> = (0..drawn).map(|e| diagonal(grid, e)).collect();
    mix(random, grid, &mut list);

    let (row_names, col_names) = (random.permutation(rows), random.permutation(cols));
    let mut of_pair = vec![0; rows * cols];
    list.iter().for_each(|&[row, col, _]| of_pair[row_names[row] * cols + col_names[col]] += 1);
    let mut chosen = vec![drawn < kept; all];
    let mut order: Vec<usize> = (0..taps).collect();
    for (pair, count) in of_pair.into_iter().enumerate() {
        for i in 0..count {
            order.swap(i, i + random.below(taps - i));
            chosen[pair * taps + order[i]] = drawn == kept;
        }
    }
    chosen
}

/// Block `e` of an order that takes each block once and whose every beginning is balanced over rows and over columns:
/// tap by tap, and at each along the diagonals.
fn diagonal([rows, cols, _]: [usize; 3], e: usize) -> [usize; 3] {
    let (mut gcd, mut rest) = (rows, cols);
    while rest > 0 {
        (gcd, rest) = (rest, gcd % rest);
    }
    let pairs = rows * cols;
    let (tap, e) = (e / pairs, e % pairs);
    [e % rows, (e + e / (pairs / gcd)) % cols, tap]
}

/// Switches `list` around. Row and column counts stay.
fn mix(random: &mut Random, [rows, cols, taps]: [usize; 3], list: &mut [[usize; 3]]) {
    if list.len() < 2 {
        return;
    }
    let index = |[row, col, tap]: [usize; 3]| (row * cols + col) * taps + tap;
    let mut taken = vec![false; rows * cols * taps];
    list.iter().for_each(|&block| taken[index(block)] = true);
    for _ in 0..list.len() * (8 + 4 * list.len().ilog2() as usize) {
        let [a, b, s, t] = random.four([list.len(), list.len(), taps, taps]);
        let (from, to) = ([list[a], list[b]], [[list[a][0], list[b][1], s], [list[b][0], list[a][1], t]]);
        from.iter().for_each(|&block| taken[index(block)] = false);
        let free = a != b && to[0] != to[1] && to.iter().all(|&block| !taken[index(block)]);
        let next = if free { to } else { from };
        next.iter().for_each(|&block| taken[index(block)] = true);
        (list[a], list[b]) = (next[0], next[1]);
    }
}

/// A stream read from its start.
struct Random<'a> {
    stream: &'a Stream,
    next: u64,
}

impl Random<'_> {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Uniform in `0..n`.
    fn below(&mut self, n: usize) -> usize {
        let index = self.next();
        self.stream.below(index, n as u64) as usize
    }

    /// One in each `0..n`, from 32 bits each. The bias, up to n * 2^-32, favours some places in the list over others,
    /// the same for a switch and its inverse.
    fn four(&mut self, n: [usize; 4]) -> [usize; 4] {
        let index = self.next();
        let words = self.stream.block(index);
        std::array::from_fn(|i| ((u64::from(words[i]) * n[i] as u64) >> 32) as usize)
    }

    fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}
